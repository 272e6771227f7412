"""transformers' protocol: saving, loading, precisions, devices, and other ways to compute the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from salticid.models import VisionLanguageConfig, VisionLanguageModel

EXPERTS = {"experts": 3, "top_k": 2, "layers": "all", "aux_loss_coef": 0.1}


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# ---- saving and loading


@pytest.mark.parametrize(
    ("tower", "connector", "language"), [("eva", "qformer", "phi"), ("efficientnet", "shuffle", "llama"), ("siglip", "pool", "gemma2")]
)
def test_round_trip_through_every_auto_class(
    tiny: Any, tower: str, connector: str, language: str, tmp_path: Path, transformers_log: list[str]
) -> None:
    model = tiny.model(tower, connector, language, template="chatml", vision_layers=[-1] if tower != "eva" else None)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]
    batch = tiny.batch(model.config, photos=(1,))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, VisionLanguageConfig)
    for loader in (VisionLanguageModel, AutoModelForImageTextToText, AutoModel):
        again = loader.from_pretrained(tmp_path)
        assert type(again) is VisionLanguageModel
        assert not again.training
        assert again.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
        assert_close(again(**batch).logits, model(**batch).logits)
    again.save_pretrained(tmp_path / "again")
    third = VisionLanguageModel.from_pretrained(tmp_path / "again")
    third.save_pretrained(tmp_path / "third")
    assert (tmp_path / "third" / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert transformers_log == []


def test_tied_weights_are_one_tensor_in_memory_and_on_disk(tiny: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    for language, tied in (("llama", True), ("qwen2", False)):
        model = tiny.model("clip", "pool", language)
        model.save_pretrained(tmp_path / language)
        with safe_open(tmp_path / language / "model.safetensors", "pt") as file:
            assert ("language_model.lm_head.weight" in file.keys()) is not tied  # noqa: SIM118 (no mapping)
        again = VisionLanguageModel.from_pretrained(tmp_path / language)
        assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) is tied


def test_parts_saved_in_another_precision_are_built_in_the_models(tiny: Any) -> None:
    """Published configurations say float16; what counts is the precision that the whole model is made or loaded in."""
    config = tiny.config("clip", "qformer", "llama")
    config.text_config.dtype = config.vision_config.dtype = torch.float16
    assert {parameter.dtype for parameter in VisionLanguageModel(config).parameters()} == {torch.float32}


def test_bfloat16(tiny: Any, tmp_path: Path) -> None:
    model = tiny.model("eva", "qformer", "llama", experts=EXPERTS)
    model.save_pretrained(tmp_path)
    half = VisionLanguageModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kept = {name for name, parameter in half.named_parameters() if parameter.dtype != torch.bfloat16}
    assert kept == {f"language_model.model.layers.{layer}.mlp.router.wg.weight" for layer in (0, 1)}
    batch = tiny.batch(model.config, photos=(1, 2), words=(6, 5))
    outputs = half(**batch)
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.loss.dtype == torch.float32
    assert_close(outputs.loss, model(**batch).loss, rtol=0.05, atol=0.05)
    outputs.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients_of(half).values())
    half.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=batch["pixel_values"], max_new_tokens=2
    )


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map_loads_without_a_second_copy(tiny: Any, tmp_path: Path, device_map: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("efficientnet", "shuffle", "llama")
    model.save_pretrained(tmp_path)
    built_on = []
    original = VisionLanguageModel.__init__

    def watch(self: VisionLanguageModel, config: VisionLanguageConfig) -> None:
        original(self, config)
        built_on.append({parameter.device.type for parameter in self.parameters()})

    monkeypatch.setattr(VisionLanguageModel, "__init__", watch)
    again = VisionLanguageModel.from_pretrained(tmp_path, device_map=device_map)
    assert built_on == [{"meta"}]
    assert {parameter.device.type for parameter in again.parameters()} == {"cpu"}
    batch = tiny.batch(model.config)
    assert_close(again(**batch).logits, model(**batch).logits)


def test_layers_may_lie_on_disk(tiny: Any, tmp_path: Path) -> None:
    """`device_map` cuts between the blocks of every part, never through one."""
    model = tiny.model("efficientnet", "qformer", "llama")
    model.save_pretrained(tmp_path)
    device_map = {"vision_tower": "cpu", "connector": "cpu", "language_model.model.embed_tokens": "cpu", "language_model.lm_head": "cpu"}
    device_map |= {"language_model.model.layers": "disk", "language_model.model.norm": "cpu", "language_model.model.rotary_emb": "cpu"}
    again = VisionLanguageModel.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    batch = tiny.batch(model.config)
    assert_close(again(**batch).logits, model(**batch).logits)


# ---- other ways to compute the same


@pytest.mark.parametrize(("tower", "connector"), [("clip", "qformer"), ("eva", "pool"), ("siglip", "shuffle"), ("efficientnet", "linear")])
def test_sdpa_equals_eager(tiny: Any, tower: str, connector: str, tmp_path: Path) -> None:
    model = tiny.model(tower, connector, "llama")
    assert model.language_model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    eager = VisionLanguageModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.language_model.config._attn_implementation == eager.vision_tower.model.config._attn_implementation == "eager"
    batch = tiny.batch(model.config, photos=(2, 1), words=(5, 7))
    real = batch["attention_mask"].bool()
    assert_close(eager(**batch).logits[real], model(**batch).logits[real])
    length = batch["input_ids"].shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & (torch.rand(length, length) < 0.5) | torch.eye(length, dtype=torch.bool)
    batch["attention_mask"] = mask.expand(2, 1, -1, -1)  # boolean, of four dimensions, as packing makes it
    assert_close(eager(**batch).logits, model(**batch).logits)
    eager.set_attn_implementation("sdpa")
    assert eager.language_model.config._attn_implementation == "sdpa"
    eager.set_attn_implementation("eager")
    attentions = eager(**batch, output_attentions=True).attentions
    assert (attentions[0][:, :, ~mask] == 0).all()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("experts", [None, EXPERTS])
def test_gradient_checkpointing_equals_plain(tiny: Any, experts: dict[str, Any] | None) -> None:
    model = tiny.model("clip", "qformer", "qwen2", experts=experts).train()
    batch = tiny.batch(model.config, photos=(1, 2), words=(6, 5))
    results = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        results.append((loss, gradients_of(model)))
    assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert_close(results[1][1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("tower", "connector"),
    [
        ("clip", "shuffle"),
        pytest.param("eva", "qformer", marks=pytest.mark.slow),
        pytest.param("efficientnet", "pool", marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_plain(tiny: Any, tower: str, connector: str) -> None:
    model = tiny.model(tower, connector, "llama", text={"num_hidden_layers": 1})
    batch = tiny.batch(model.config, photos=(1, 2), words=(6, 5))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(compiled(**batch).loss, model(**batch).loss)
    assert_close(compiled(**batch).logits, model(**batch).logits)


def test_a_copy_is_independent(tiny: Any) -> None:
    model = tiny.model("efficientnet", "pool", "llama")
    batch = tiny.batch(model.config)
    before = model(**batch).logits
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.vision_tower.parameters():
            parameter.zero_()
    assert_close(model(**batch).logits, before, rtol=0, atol=0)
    assert not torch.allclose(twin(**batch).logits, before)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT still asks so
def test_lora_on_all_linear_layers_trains_and_merges_back(tiny: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny.model("clip", "qformer", "llama")
    before = copy.deepcopy(model.state_dict())
    batch = tiny.batch(model.config, photos=(1, 2), words=(6, 5))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    optimizer = torch.optim.SGD([parameter for parameter in adapted.parameters() if parameter.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = adapted(**batch).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    adapted.eval()
    expected = adapted(**batch).logits
    del batch["labels"]
    words = adapted.generate(**batch, max_new_tokens=3, do_sample=False)
    merged = adapted.merge_and_unload()
    assert type(merged) is VisionLanguageModel
    assert merged.state_dict().keys() == before.keys()
    assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    assert merged.generate(**batch, max_new_tokens=3, do_sample=False).equal(words)
    moved = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, before[name])}
    assert any(name.startswith("vision_tower") for name in moved)
    assert any(name.startswith("connector") for name in moved)
    assert any(name.startswith("language_model") for name in moved)
