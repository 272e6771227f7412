"""MoE-LLaVA's checkpoints: names and shapes as upstream writes them, there and back, and what may be wrong with them."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from salticid.checkpoints.key_table import build
from salticid.checkpoints.load import load_model, load_processor
from salticid.checkpoints.moe_llava import EMBEDDING, HEAD, PHI_HEAD_BIAS, convert_moe_llava, invert_moe_llava, key_table
from salticid.checkpoints.moe_llava_config import experts_config, invert_moe_llava_config, text_config
from salticid.checkpoints.moe_llava_folder import convert_moe_llava_folder, export_moe_llava_folder
from salticid.errors import CheckpointError
from salticid.models import VisionLanguageModel

GOLDENS = Path(__file__).parents[1] / "goldens"
BACKBONES = ("phi", "stablelm", "qwen", "mistral")
STAGES = ("dense", "moe")
IMAGE_ID = 509


@cache
def recorded() -> dict[str, Any]:
    """Names, shapes and config.json of the models that upstream wrote, and config.json of their vision tower."""
    return json.loads((GOLDENS / "moe_llava_keys.json").read_text())


def checkpoint(backbone: str, stage: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in recorded()[backbone][stage].items()}
    return dict(recorded()[backbone]["config"][stage]), tensors


def convert(values: dict[str, Any], tensors: dict[str, Tensor], image_token_id: int = IMAGE_ID, **options: Any) -> Any:
    return convert_moe_llava(values, tensors, image_token_id, tower=recorded()["tower"], **options)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_there_and_back_bit_by_bit(backbone: str, stage: str) -> None:
    values, upstream = checkpoint(backbone, stage)
    conversion = convert(values, upstream)
    ours = dict(conversion.tensors())
    VisionLanguageModel(conversion.config).load_state_dict(ours, strict=True)

    back = invert_moe_llava(backbone, ours)
    assert set(back) == set(upstream)
    assert all(torch.equal(back[name], upstream[name]) for name in upstream)

    again = convert(invert_moe_llava_config(conversion.config), back)
    assert again.config.to_dict() == conversion.config.to_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.tensors())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_decoder_layer_computes_what_upstreams_does(backbone: str) -> None:
    golden = GOLDENS / f"moe_llava_layer_{backbone}.safetensors"
    with safe_open(golden, "pt") as file:
        values = json.loads(file.metadata()["config"]) | {"num_hidden_layers": 1}
    upstream = load_file(golden)
    given, expected = upstream.pop("input"), upstream.pop("output")
    config = text_config(values)
    language = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).eval()
    plan = key_table(backbone).plan(upstream)
    prefix = "language_model.model.layers.0."
    layer = {name.removeprefix(prefix): build(name, sources, upstream) for name, sources in plan.items()}
    language.base_model.layers[0].load_state_dict(layer, strict=True)
    setattr(language.base_model, "final_layernorm" if backbone == "phi" else "norm", nn.Identity())
    with torch.no_grad():
        found = language.base_model(inputs_embeds=given).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_experts_that_are_copies_answer_as_the_dense_model(backbone: str) -> None:
    values, upstream = checkpoint(backbone, "dense")
    upstream = {name: tensor * 0.1 for name, tensor in upstream.items()}
    sparse_values, sparse = checkpoint(backbone, "moe")
    for name in sparse:
        copied = re.sub(r"deepspeed_moe\.experts\.deepspeed_experts\.\d+\.", "", name)
        sparse[name] = upstream.get(copied, sparse[name])
    ids = torch.randint(500, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = []
    for conversion in (convert(values, upstream), convert(sparse_values, sparse)):
        model = VisionLanguageModel(conversion.config).eval()
        model.load_state_dict(dict(conversion.tensors()))
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert logits[0].std() > 0.01
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)


FULL_SIZE = {"Phi2-2.7B": "phi", "StableLM-1.6B": "stablelm", "Qwen-1.8B": "qwen"}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_tensor_of_the_full_size_models_has_a_place(shared: Path, name: str, stage: str) -> None:
    folder = shared / "fixtures" / "fullsize_keys"
    sparse = json.loads((folder / f"MoE-LLaVA-{name}-4e.json").read_text())
    keys = sparse["keys"] if stage == "moe" else json.loads((folder / f"MoE-LLaVA-{name}-4e.dense.json").read_text())["keys"]
    backbone, layers = FULL_SIZE[name], sparse["config"]["num_hidden_layers"]
    values = {"model_type": f"llava_{backbone}", "mm_image_tower": "openai/clip-vit-large-patch14-336", **sparse["config"]}
    values["image_projector_type"] = "mlp2x_gelu"
    if stage == "moe":
        moe = recorded()[backbone]["config"]["moe"]["moe"]
        values |= {"model_type": f"moe_llava_{backbone}"}
        values["moe"] = moe | {"moe_layers_idx": list(range(0, layers, 2)), "num_experts": [4] * (layers // 2)}
    conversion = convert_moe_llava(values, {key: torch.empty(shape, device="meta") for key, shape in keys.items()}, 100)
    ours = {key: tensor for key, tensor in conversion.tensors() if key != PHI_HEAD_BIAS}
    assert conversion.config.image_tokens == 576
    assert {key: list(tensor.shape) for key, tensor in invert_moe_llava(backbone, ours).items()} == keys


# ---- configuration


@pytest.mark.parametrize("backbone", BACKBONES)
def test_experts_follow_upstreams_section(backbone: str) -> None:
    values, _ = checkpoint(backbone, "moe")
    experts = experts_config(values)
    assert experts is not None
    assert experts.experts_per_layer(4) == {0: 4, 2: 4}
    assert (experts.routing, experts.top_k, experts.aux_loss_coef) == ("deepspeed", 2, 0.01)
    assert (experts.capacity_factor, experts.eval_capacity_factor, experts.min_capacity) == (1.5, 2.0, 0)
    assert experts_config(checkpoint(backbone, "dense")[0]) is None
    dropless = experts_config(values, "dropless")
    assert dropless is not None
    assert dropless.routing == "dropless"


def test_stablelm_names_its_epsilon_and_biases_otherwise() -> None:
    values = {**recorded()["stablelm"]["config"]["dense"], "norm_eps": 3e-4}
    assert text_config(values)["layer_norm_eps"] == 3e-4
    del values["use_qkv_bias"], values["norm_eps"]
    assert text_config(values)["use_qkv_bias"] is True
    assert text_config(values)["layer_norm_eps"] == 1e-5


def test_qwens_context_ends_where_dynamic_ntk_and_logn_begin() -> None:
    values = {**recorded()["qwen"]["config"]["dense"], "seq_length": 2048, "max_position_embeddings": 8192}
    context = text_config(values)["max_position_embeddings"]
    for length, alike in ((1, True), (100, True), (context, True), (context + 1, False)):
        alpha = max(2 ** math.ceil(math.log2(length / values["seq_length"]) + 1) - 1, 1)
        logn = math.log(length, values["seq_length"]) if length > values["seq_length"] else 1
        assert ((alpha, logn) == (1, 1)) is alike


@pytest.mark.parametrize("change", [{"no_bias": False}, {"rotary_pct": 0.5}, {"kv_channels": 8}])
def test_a_qwen_that_qwen2_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="this Qwen"):
        text_config({**recorded()["qwen"]["config"]["dense"], **change})


def test_siglip_loses_its_first_patch_as_upstream_has_it() -> None:
    values, upstream = checkpoint("phi", "dense")
    upstream = {name: tensor for name, tensor in upstream.items() if "image_tower" not in name}
    tower = {"model_type": "siglip", "vision_config": {**SIGLIP, "num_hidden_layers": 2}, "text_config": {}}
    model = VisionLanguageModel(
        convert_moe_llava(values, {**upstream, **siglip_tensors("model.image_tower.image_tower.")}, IMAGE_ID, tower=tower).config
    )
    assert model.config.image_tokens == 15
    pixels = torch.randn(1, 3, 56, 56)
    whole = model.vision_tower.model(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.vision_tower(pixels), whole[:, 1:])


SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}


def siglip_tensors(prefix: str) -> dict[str, Tensor]:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    state = SiglipVisionModel(SiglipVisionConfig(**SIGLIP, num_hidden_layers=2)).state_dict()
    return {f"{prefix}vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in state.items()}


# ---- what upstream's files may look like


@pytest.mark.parametrize("backbone", ["phi", "qwen"])
def test_llavas_own_projector_names(backbone: str) -> None:
    values, upstream = checkpoint(backbone, "dense")
    expected = dict(convert(values, upstream).tensors())
    renamed = {name.replace("image_spatial_proj.", ""): tensor for name, tensor in upstream.items()}
    assert renamed.keys() != upstream.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in convert(values, renamed).tensors())


def test_a_linear_projector_there_and_back() -> None:
    values, upstream = checkpoint("phi", "dense")
    values["image_projector_type"] = "linear"
    for kind in ("weight", "bias"):
        del upstream[f"model.mm_projector.image_spatial_proj.2.{kind}"]
        upstream[f"model.mm_projector.image_spatial_proj.{kind}"] = upstream.pop(f"model.mm_projector.image_spatial_proj.0.{kind}")
    ours = dict(convert(values, upstream).tensors())
    assert ours["connector.layers.0.weight"].shape == (64, 32)
    assert invert_moe_llava("phi", ours, linear=True).keys() == upstream.keys()


def test_buffers_and_video_are_left_out_by_rule() -> None:
    values, upstream = checkpoint("phi", "dense")
    extra = (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.image_tower.image_tower.vision_model.embeddings.position_ids",
        "model.mm_projector.video_patch_proj.0.weight",
        "model.video_tower.layers.0.weight",
    )
    expected = dict(convert(values, upstream).tensors())
    assert dict(convert(values, upstream | dict.fromkeys(extra, torch.ones(1))).tensors()).keys() == expected.keys()


def test_the_given_tower_replaces_the_one_inside_as_upstream_does() -> None:
    values, upstream = checkpoint("phi", "dense")
    inside = "model.image_tower.image_tower."
    given = {name.removeprefix(inside): tensor + 1 for name, tensor in upstream.items() if name.startswith(inside)}
    given |= {"text_model.a": torch.ones(1), "logit_scale": torch.ones(1), "visual_projection.weight": torch.ones(1)}
    ours = dict(convert(values, upstream, tower_weights=given).tensors())
    name = "embeddings.patch_embedding.weight"
    assert torch.equal(ours[f"vision_tower.model.{name}"], given[f"vision_model.{name}"])


def test_a_placeholder_beyond_the_vocabulary_gets_a_row() -> None:
    values, upstream = checkpoint("phi", "moe")
    conversion = convert(values, upstream, 513)
    ours = dict(conversion.tensors())
    assert conversion.config.text_config.vocab_size == 514
    for name, key in ((EMBEDDING, "model.embed_tokens.weight"), (HEAD, "lm_head.weight")):
        assert torch.equal(ours[name][:512], upstream[key])
        torch.testing.assert_close(ours[name][512:], upstream[key].mean(0).expand(2, -1))
    back = invert_moe_llava("phi", ours, vocabulary=512)
    assert torch.equal(back["lm_head.weight"], upstream["lm_head.weight"])


def test_a_checkpoint_with_another_vocabulary_than_its_config_keeps_its_rows() -> None:
    values, upstream = checkpoint("phi", "dense")
    assert convert({**values, "vocab_size": 777}, upstream).config.text_config.vocab_size == 512


def test_a_bias_of_phis_head_is_kept_and_cannot_go_back() -> None:
    values, upstream = checkpoint("phi", "dense")
    bias = torch.randn(512)
    ours = dict(convert(values, upstream | {"lm_head.bias": bias}).tensors())
    assert torch.equal(ours[PHI_HEAD_BIAS], bias)
    with pytest.raises(CheckpointError, match="output head has a bias"):
        invert_moe_llava("phi", ours)


def test_residual_experts_have_places() -> None:
    values, upstream = checkpoint("phi", "moe")
    values["moe"] = {**values["moe"], "use_residual": True}
    for layer in (0, 2):
        mlp = f"model.layers.{layer}.mlp"
        upstream |= {f"{mlp}.coefficient.weight": torch.randn(2, 64), f"{mlp}.coefficient.bias": torch.randn(2)}
        for part, shape in (("fc1", (160, 64)), ("fc2", (64, 160))):
            upstream |= {f"{mlp}.mlp.{part}.weight": torch.randn(shape), f"{mlp}.mlp.{part}.bias": torch.randn(shape[0])}
    ours = dict(convert(values, upstream).tensors())
    assert torch.equal(ours["language_model.model.layers.2.mlp.residual_mlp.fc1.bias"], upstream["model.layers.2.mlp.mlp.fc1.bias"])
    assert invert_moe_llava("phi", ours).keys() == upstream.keys()


# ---- what may be wrong


def without(part: str) -> Any:
    return lambda values, tensors: (values, {name: tensor for name, tensor in tensors.items() if part not in name})


def with_values(**change: Any) -> Any:
    return lambda values, tensors: ({**values, **change}, tensors)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (with_values(model_type="llava_llama"), "model_type is 'llava_llama', which is none of MoE-LLaVA's"),
        (with_values(model_type="minigpt4"), "none of MoE-LLaVA's"),
        (with_values(model_type="llava_qwen"), "config.json lacks|no rule for"),
        (with_values(image_projector_type="qformer4_36"), "projector 'qformer4_36' is not supported"),
        (with_values(hidden_size=128), "has the shape"),
        (with_values(num_hidden_layers=3), "no place for"),
        (without("image_tower"), "vision tower is missing or incomplete; give its folder with --vision"),
        (without("mm_projector"), "projector is missing"),
        (without("model.layers.3."), "language model is missing or incomplete"),
        (without("deepspeed_experts.3.fc1"), "has the shape|needs every expert"),
        (without("deepspeed_experts.1.fc1"), "needs every expert once"),
        (lambda values, tensors: (values, tensors | {"q_former.weight": torch.ones(1)}), "no rule for q_former.weight"),
    ],
)
def test_bad_checkpoints(spoil: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        dict(convert(*spoil(*checkpoint("phi", "moe"))).tensors())
    assert "\n" not in str(caught.value)


def test_an_unpublished_tower_needs_its_folder() -> None:
    with pytest.raises(CheckpointError, match="--vision"):
        convert_moe_llava(*checkpoint("phi", "dense"), IMAGE_ID)
    with pytest.raises(CheckpointError, match="give a CLIP or SigLIP"):
        convert_moe_llava(*checkpoint("phi", "dense"), IMAGE_ID, tower={"model_type": "bert"})


# ---- folders


@pytest.fixture
def folders(tmp_path: Path, tiny_model_folder: Path) -> dict[str, Path]:
    """An upstream folder, its vision folder, and one with a tokenizer."""
    values, upstream = checkpoint("phi", "moe")
    made = {name: tmp_path / name for name in ("source", "vision")}
    for folder in made.values():
        folder.mkdir()
    (made["source"] / "config.json").write_text(json.dumps(values))
    torch.save({name: tensor.half() for name, tensor in upstream.items()}, made["source"] / "pytorch_model.bin")
    (made["vision"] / "config.json").write_text(json.dumps(recorded()["tower"]))
    return made | {"tokenizer": tiny_model_folder}


def test_a_folder_there_and_back(folders: dict[str, Path], tmp_path: Path) -> None:
    config = convert_moe_llava_folder(folders["source"], tmp_path / "ours", vision=folders["vision"], tokenizer=folders["tokenizer"])
    assert config.template == "moe_llava"
    model, processor = load_model(tmp_path / "ours", dtype=torch.float16), load_processor(tmp_path / "ours")
    upstream = torch.load(folders["source"] / "pytorch_model.bin")
    name = "layers.2.mlp.deepspeed_moe.experts.deepspeed_experts.3.fc1.weight"
    assert torch.equal(model.language_model.model.layers[2].mlp.experts.up_proj[3], upstream[f"model.{name}"])
    assert processor.image_tokens == model.config.image_tokens == 16
    assert processor.image_processor.mode == "pad"
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")

    export_moe_llava_folder(tmp_path / "ours", tmp_path / "back")
    back = torch.load(tmp_path / "back" / "pytorch_model.bin")
    assert back.keys() == upstream.keys()
    assert all(torch.equal(back[key], upstream[key]) for key in back)


def test_a_folder_that_fails_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = folders["source"] / "pytorch_model.bin"
    tensors = torch.load(weights)
    torch.save(tensors | {"model.layers.3.mlp.fc2.weight": torch.ones(1)}, weights)  # noticed while the new weights are written
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="has the shape"):
        convert_moe_llava_folder(folders["source"], tmp_path / "ours", vision=folders["vision"], tokenizer=folders["tokenizer"])
    assert sorted(tmp_path.iterdir()) == before


def test_stage_one_is_a_projector_and_a_language_model(folders: dict[str, Path], tmp_path: Path) -> None:
    values, upstream = checkpoint("phi", "dense")
    source, language = folders["source"], tmp_path / "language"
    language.mkdir()
    (source / "config.json").write_text(json.dumps(values))
    (source / "pytorch_model.bin").unlink()
    parts = {part: {name: tensor for name, tensor in upstream.items() if part in name} for part in ("mm_projector", "image_tower")}
    torch.save(parts["mm_projector"], source / "mm_projector.bin")
    tower = {name.removeprefix("model.image_tower.image_tower."): tensor for name, tensor in parts["image_tower"].items()}
    save_file(tower, folders["vision"] / "model.safetensors")
    rest = {name: tensor for name, tensor in upstream.items() if not any(name in part for part in parts.values())}
    save_file(rest, language / "model.safetensors")
    options = {"vision": folders["vision"], "tokenizer": folders["tokenizer"]}
    with pytest.raises(CheckpointError, match=r"stage-1 checkpoint.*--language"):
        convert_moe_llava_folder(source, tmp_path / "ours", **options)
    convert_moe_llava_folder(source, tmp_path / "ours", language=language, **options)
    state = load_model(tmp_path / "ours").state_dict()
    assert torch.equal(state["connector.layers.2.weight"], upstream["model.mm_projector.image_spatial_proj.2.weight"])


def test_a_missing_or_foreign_folder_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        convert_moe_llava_folder(tmp_path / "nowhere", tmp_path / "ours")
    with pytest.raises(CheckpointError, match="none of MoE-LLaVA's"):
        convert_moe_llava_folder(folders["tokenizer"], tmp_path / "ours")
    with pytest.raises(CheckpointError, match="--tokenizer"):
        convert_moe_llava_folder(folders["source"], tmp_path / "ours", vision=folders["vision"])
