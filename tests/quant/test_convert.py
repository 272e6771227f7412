"""A quantised model answers like its original, and exactly like plain layers with the rounded weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from salticid.checkpoints.load import load_model
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.quant import Int4Embedding, Int4Experts, Int4Linear, Int8Embedding, Int8Experts, Int8Linear, int4, int8, quantize_model
from salticid.quant.plan import Precision, make_plan
from salticid.quant.swap import SMALL_LAYERS

Build = Callable[[str], VisionLanguageModel]
Inputs = dict[str, torch.Tensor]


@torch.no_grad()
def logits(model: VisionLanguageModel, inputs: Inputs) -> torch.Tensor:
    return model(**inputs).logits.float()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("make", ["llama tied", "llama untied", "phi", "gemma", "qformer"])
def test_logits_stay_close_and_equal_those_of_the_rounded_weights(make: str, build: Build, inputs: Inputs) -> None:
    model = build(make)
    original = logits(model, inputs)
    quantize_model(model)
    small = logits(model, inputs)
    assert 1e-5 < difference(small, original) < 0.02
    rounded = deepcopy(model).dequantize(torch.float32)
    assert not any(isinstance(module, (Int8Linear, Int8Embedding)) for module in rounded.modules())
    assert difference(small, logits(rounded, inputs)) < 1e-4


def test_the_right_layers_change(build: Build) -> None:
    model, original = quantize_model(build("qformer")), build("qformer")
    for part in (model.connector, model.language_model):
        assert not any(isinstance(module, (nn.Linear, nn.Embedding)) for module in part.modules())
    changed = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.int8}
    assert {name.split(".")[0] for name in changed} == {"connector", "language_model"}
    assert "language_model.model.layers.1.mlp.down_proj.weight" in changed
    for name, tensor in model.state_dict().items():
        if tensor.dtype != torch.int8 and not name.endswith(".scale"):
            expected = original.state_dict()[name]
            rounded = name.startswith("vision_tower") and expected.is_floating_point() and expected.ndim > 1
            assert torch.equal(tensor, expected.bfloat16().float() if rounded else expected), name


def test_a_tied_head_shares_one_table_and_an_untied_one_keeps_its_bias(build: Build) -> None:
    tied = quantize_model(build("llama tied"))
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert tied.get_output_embeddings().scale is tied.get_input_embeddings().scale
    tied.tie_weights()
    assert tied.get_output_embeddings().scale is tied.get_input_embeddings().scale
    phi = build("phi")
    bias = phi.get_output_embeddings().bias.detach().clone()
    quantize_model(phi)
    assert torch.equal(phi.get_output_embeddings().bias, bias)
    assert not torch.equal(phi.get_output_embeddings().weight, phi.get_input_embeddings().weight)


@pytest.mark.parametrize("make", ["llama tied", "llama untied", "phi"])
def test_both_kernels_generate_the_same_words(make: str, build: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize_model(build(make))
    words = []
    for rows in ({}, {torch.float32: 1}, {torch.float32: 1000}):
        monkeypatch.setattr(int8, "PACKED_ROWS", rows)
        words.append(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist())
    assert words[0] == words[1] == words[2]
    assert len(set(words[0][-8:])) > 1


def test_bfloat16_stays_close(build: Build, inputs: Inputs) -> None:
    model = quantize_model(build("llama tied"))
    expected = logits(model, inputs)
    model.to(torch.bfloat16)
    assert model.dtype == model.language_model.dtype == torch.bfloat16
    assert difference(logits(model, inputs), expected) < 0.03


def test_dequantised_models_are_ordinary_and_can_be_quantised_again(build: Build, inputs: Inputs, tmp_path: Path) -> None:
    model = quantize_model(build("llama tied"))
    table, expected = model.get_input_embeddings().weight.clone(), logits(model, inputs)
    model.dequantize(torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    assert difference(logits(load_model(tmp_path), inputs), expected) < 1e-4
    assert torch.equal(quantize_model(model).get_input_embeddings().weight, table)


def test_photos_can_train_a_connector_through_a_quantised_language_model(build: Build, inputs: Inputs) -> None:
    model = quantize_model(build("llama tied"))
    features = model.get_image_features(inputs["pixel_values"]).detach().requires_grad_()
    model(input_ids=inputs["input_ids"], image_features=features, labels=inputs["input_ids"]).loss.backward()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize("make", ["llama tied", "phi", "gemma", "qformer", "experts"])
def test_four_bits_stay_close_and_equal_the_rounded_weights(make: str, build: Build, inputs: Inputs) -> None:
    model = build(make)
    original = logits(model, inputs)
    quantize_model(model, bits=4, group=32)
    small = logits(model, inputs)
    assert 1e-3 < difference(small, original) < 0.25
    rounded = deepcopy(model).dequantize(torch.float32)
    assert not any(isinstance(module, SMALL_LAYERS) for module in rounded.modules())
    assert difference(small, logits(rounded, inputs)) < 1e-4


def test_what_becomes_what(build: Build) -> None:
    layers = {name: type(module) for name, module in quantize_model(build("experts"), bits=4, words=4).named_modules()}
    assert layers["language_model.model.layers.0.self_attn.q_proj"] is Int4Linear
    assert layers["language_model.model.layers.0.mlp.experts"] is Int4Experts
    assert issubclass(layers["language_model.model.layers.0.mlp.router.wg"], nn.Linear)
    assert layers["language_model.model.layers.0.mlp.coefficient"] is nn.Linear
    assert layers["language_model.model.embed_tokens"] is Int4Embedding
    assert layers["language_model.lm_head"] is Int4Linear
    assert layers["connector.layers.0"] is Int8Linear
    assert layers["vision_tower.model.encoder.layers.0.mlp.fc1"] is Int8Linear
    eight = {name: type(module) for name, module in quantize_model(build("experts"), bits=8, tower=16).named_modules()}
    assert eight["language_model.model.layers.0.mlp.experts"] is Int8Experts
    assert eight["vision_tower.model.encoder.layers.0.mlp.fc1"] is nn.Linear


@pytest.mark.parametrize("bits", [4, 8])
def test_routers_keep_float32(bits: int, build: Build, tmp_path: Path) -> None:
    quantize_model(build("experts"), bits=bits).save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.language_model.model.layers[0].mlp.router.wg.weight.dtype == torch.float32


def test_groups_shrink_to_what_divides_a_layer_and_eight_bits_serve_the_rest(build: Build) -> None:
    model = build("llama tied")
    layer = model.language_model.model.layers[0]
    layer.mlp.down_proj = nn.Linear(96, 64)
    layer.mlp.up_proj = nn.Linear(40, 64)
    plan = {place.name.split(".", 4)[-1]: place for place in make_plan(model, Precision(4, 128)) if "layers.0." in place.name}
    assert (plan["mlp.gate_proj"].bits, plan["mlp.gate_proj"].group) == (4, 64)
    assert (plan["mlp.down_proj"].bits, plan["mlp.down_proj"].group) == (4, 32)
    assert (plan["mlp.up_proj"].bits, plan["mlp.up_proj"].group) == (8, None)


def test_a_tied_head_of_four_bits_shares_one_table(build: Build) -> None:
    tied = quantize_model(build("llama tied"), bits=4, words=4)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert tied.get_output_embeddings().scale_zero is tied.get_input_embeddings().scale_zero


@pytest.mark.parametrize("make", ["llama tied", "phi", "experts"])
def test_both_kernels_of_four_bits_generate_the_same_words(
    make: str, build: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantize_model(build(make), bits=4, group=32, words=4)
    words = []
    for rows in ({}, {torch.float32: 1}, {torch.float32: 1000}):
        monkeypatch.setattr(int4, "PACKED_ROWS", rows)
        words.append(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist())
    assert words[0] == words[1] == words[2]
    assert len(set(words[0][-8:])) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "3 bits are not supported; use bits=8 or 4"),
        ({"bits": 16}, "16 bits are not supported; use bits=8 or 4"),
        ({"bits": 4, "group": 48}, "group=48: use 32 or 64 or 128"),
        ({"bits": 4, "words": 2}, "words=2: use 8 or 4"),
        ({"bits": 8, "tower": 5}, "tower=5: use 16 or 8 or 4"),
    ],
)
def test_other_options_are_refused_before_anything_changes(options: dict[str, int], message: str, build: Build) -> None:
    model = build("llama tied")
    with pytest.raises(ConfigurationError, match=message):
        quantize_model(model, **options)
    assert isinstance(model.get_output_embeddings(), nn.Linear)


def test_a_quantised_model_is_not_quantised_again(build: Build) -> None:
    model = quantize_model(build("llama tied"))
    with pytest.raises(ConfigurationError, match="quantised already"):
        quantize_model(model)
