"""What a stage changes about its model before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from salticid.checkpoints.load import load_model, load_processor
from salticid.checkpoints.lora import save_model
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.models.moe import ExpertsConfig, upcycle_language_model
from salticid.models.moe.experts import Experts
from salticid.train.adapt import add_lora, divide, see, settle_lora, speak
from salticid.train.expert_lora import MATRICES, add_expert_factors, merge_expert_factors
from salticid.train.freezing import freeze_except, learning_parameters, lower_frozen, resting_modules
from salticid.train.recipe import ExpertsRecipe, LoraRecipe, PartRecipe, PhotosRecipe

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture
def model(tiny_model_folder: Path) -> VisionLanguageModel:
    return load_model(tiny_model_folder).eval()


def logits(model: VisionLanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def lora(**changes: Any) -> LoraRecipe:
    return LoraRecipe.model_validate({"rank": 2, "targets": TARGETS, **changes})


def push(model: torch.nn.Module) -> None:
    """One large step of everything that learns."""
    with torch.no_grad():
        for number, parameter in enumerate(learning_parameters(model).values()):
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3


def test_new_lora_changes_nothing_until_it_learns(model: VisionLanguageModel, tmp_path: Path) -> None:
    before = logits(model)
    add_lora(model, lora(shared=["q_proj", "k_proj", "v_proj"]))
    assert_close(logits(model), before)
    freeze_except(model, {"language_model": PartRecipe(learning_rate=1e-3)})
    learning = set(learning_parameters(model))
    assert all(".lora_" in name for name in learning)
    assert {name.split(".")[5] for name in learning if "lora_A" in name} == {"q_proj", "o_proj"}  # the shared one stands once
    assert {name.split(".")[5] for name in learning if "lora_B" in name} == set(TARGETS)
    push(model)
    after = logits(model)
    assert (after - before).abs().max() > 1e-2
    save_model(model, tmp_path / "beside")
    again = load_model(tmp_path / "beside").eval()
    assert_close(logits(again), after)
    block: Any = again.language_model.model.layers[0].self_attn
    assert block.k_proj.lora_A["default"] is block.q_proj.lora_A["default"]
    settle_lora(model, lora(merge=True))
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert_close(logits(model), after, atol=1e-4, rtol=1e-4)


def test_a_model_that_carries_lora_goes_on_with_it(model: VisionLanguageModel) -> None:
    add_lora(model, lora())
    held = dict(model.named_parameters())
    add_lora(model, lora())
    assert dict(model.named_parameters()).keys() == held.keys()
    with pytest.raises(ConfigurationError, match=r"carries LoRA of rank 2 but lora\.rank is 4"):
        add_lora(model, lora(rank=4))


def test_only_reaches_weights_below_lora(model: VisionLanguageModel) -> None:
    add_lora(model, lora())
    freeze_except(model, {"language_model": PartRecipe(learning_rate=1e-3, only=[r"\.lora_B\.", r"input_layernorm\.weight$"])})
    assert {name.rpartition("layers.")[2].split(".", 1)[1] for name in learning_parameters(model)} == {
        *(f"self_attn.{target}.lora_B.default.weight" for target in TARGETS),
        "input_layernorm.weight",
    }


def test_wrong_lora_is_named(model: VisionLanguageModel) -> None:
    with pytest.raises(ConfigurationError, match=r"lora.targets names query, .*known: .*q_proj"):
        add_lora(model, lora(targets=["q_proj", "query"]))
    with pytest.raises(ConfigurationError, match="the model has no experts"):
        add_lora(model, lora(targets=[], experts=True, merge=True))
    for wrong, message in (({"targets": []}, "name targets"), ({"shared": ["x"]}, "shared names x"), ({"experts": True}, "set merge")):
        with pytest.raises(ValueError, match=message):
            lora(**wrong)


def test_factors_beside_experts(model: VisionLanguageModel) -> None:
    upcycle_language_model(model.language_model, ExpertsConfig(experts=3, layers="all"), host_config=model.config)
    before = logits(model)
    add_expert_factors(model, rank=2, alpha=4)
    assert_close(logits(model), before)
    freeze_except(model, {"language_model": PartRecipe(learning_rate=1e-3)})
    model(input_ids=IDS).logits.square().mean().backward()
    factors = learning_parameters(model)
    assert len(factors) == 2 * 2 * 2  # layers, matrices, A and B
    assert all(parameter.grad is not None and parameter.ndim == 3 for parameter in factors.values())
    assert any(parameter.grad.any() for name, parameter in factors.items() if "lora_B" in name)
    push(model)
    after = logits(model)
    assert (after - before).abs().max() > 1e-2
    layer = next(module for module in model.modules() if isinstance(module, Experts))
    name = next(name for name in MATRICES if hasattr(layer, name))
    pair: Any = layer.parametrizations[name]
    by_hand = torch.stack([w + 2 * b @ a for w, a, b in zip(pair.original, pair[0].lora_A, pair[0].lora_B, strict=True)])
    assert_close(getattr(layer, name), by_hand)
    merge_expert_factors(model)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert_close(logits(model), after)


def test_experts_are_added_once(model: VisionLanguageModel) -> None:
    before = logits(model)
    recipe = ExpertsRecipe(options={"experts": 2, "layers": "all"})
    divide(model, recipe, seed=1)
    assert model.config.experts is not None
    assert_close(logits(model), before, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigurationError, match="the model has some already"):
        divide(model, recipe, seed=1)
    with pytest.raises(ValueError, match="Unknown expert options"):
        ExpertsRecipe(options={"expertss": 2})


def test_a_template_brings_its_end(tiny_model_folder: Path, model: VisionLanguageModel) -> None:
    processor = load_processor(tiny_model_folder)
    speak(model, processor, "moe_llava")
    tokenizer = processor.tokenizer
    assert model.config.template == "moe_llava"
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    with pytest.raises(ConfigurationError, match="unknown conversation template"):
        speak(model, processor, "klingon")


def test_photos_of_another_size(tiny_model_folder: Path, model: VisionLanguageModel) -> None:
    processor = load_processor(tiny_model_folder)
    before = processor.image_tokens
    see(model, processor, PhotosRecipe(size=128, mode="pad", background="mean"))
    assert processor.image_tokens == model.config.image_tokens == 4 * before
    pixels = processor.image_processor(torch.zeros(30, 20, 3, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 128, 128)
    assert model.get_image_features(pixels).shape[1] == processor.image_tokens
    see(model, processor, PhotosRecipe(mode="crop"))
    assert processor.image_processor.background is None
    assert processor.image_processor.size == 128


def test_positions_of_a_tower_are_interpolated(tiny_model_folder: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": 16, **sizes}
    eva = {"model_type": "blip_2_vision_model", **sizes, "image_size": 8, "patch_size": 4}
    model = VisionLanguageModel(VisionLanguageConfig(vision_config=eva, text_config=text)).eval()
    processor = load_processor(tiny_model_folder)
    see(model, processor, PhotosRecipe(size=16))
    assert dict(model.named_parameters())["vision_tower.model.embeddings.position_embedding"].shape == (1, 17, 16)
    assert model.get_image_features(torch.zeros(1, 3, 16, 16)).shape[1] == processor.image_tokens == 16
    clip = {**eva, "model_type": "clip_vision_model"}
    fixed = VisionLanguageModel(VisionLanguageConfig(vision_config=clip, text_config=text))
    with pytest.raises(ConfigurationError, match=r"photos\.size is 16 but clip_vision_model reads 8"):
        see(fixed, processor, PhotosRecipe(size=16))


def test_frozen_matrices_take_half_the_memory(model: VisionLanguageModel) -> None:
    before = logits(model)
    upcycle_language_model(model.language_model, ExpertsConfig(experts=2, layers="all"), host_config=model.config)
    add_lora(model, lora())
    freeze_except(model, {"connector": PartRecipe(learning_rate=1e-3), "language_model": PartRecipe(learning_rate=1e-3)})
    lower_frozen(model, "bf16")
    assert {parameter.dtype for parameter in learning_parameters(model).values()} == {torch.float32}
    lowered = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert {name.rpartition(".")[2] for name in lowered} <= {"weight", "bias", *MATRICES}
    assert any("base_layer" in name for name in lowered)
    assert any("experts" in name for name in lowered)
    assert any(name.startswith("vision_tower.") for name in lowered)
    assert not any("norm" in name or "embed" in name for name in lowered)
    with torch.autocast("cpu", torch.bfloat16):
        assert (logits(model).float() - before).abs().max() < 0.1 * before.abs().max()
        features = model.get_image_features(torch.rand(1, 3, 64, 64))
    assert features.isfinite().all()


def test_what_does_not_learn_rests(model: VisionLanguageModel) -> None:
    model.train()
    freeze_except(model, {"connector": PartRecipe(learning_rate=1e-3, only=[r"^layers\."])})
    for module in [*resting_modules(model.vision_tower), *resting_modules(model.connector)]:
        module.eval()
    connector: Any = model.connector
    assert connector.training
    assert connector.layers.training
    assert not connector.norm.training
    assert not model.vision_tower.training
