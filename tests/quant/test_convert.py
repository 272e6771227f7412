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
from salticid.models.moe import ExpertsConfig
from salticid.models.moe.experts import FeedForwardShape
from salticid.models.moe.layer import ExpertsLayer
from salticid.quant import Int8Embedding, Int8Linear, int8, quantize_model

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


@pytest.mark.parametrize("bits", [4, 16])
def test_other_bits_are_refused_before_anything_changes(bits: int, build: Build) -> None:
    model = build("llama tied")
    with pytest.raises(ConfigurationError, match=f"{bits} bits are not supported; use bits=8"):
        quantize_model(model, bits=bits)
    assert isinstance(model.get_output_embeddings(), nn.Linear)


def test_a_quantised_model_is_not_quantised_again(build: Build) -> None:
    model = quantize_model(build("llama tied"))
    with pytest.raises(ConfigurationError, match="quantised already"):
        quantize_model(model)


def test_experts_are_refused_before_anything_changes(build: Build) -> None:
    model = build("llama tied")
    shape = FeedForwardShape(width=64, ffn=128, gated=True, bias=False, activation=nn.SiLU())
    model.language_model.model.layers[0].mlp = ExpertsLayer(ExpertsConfig(), model.language_model.config, shape, 4)
    with pytest.raises(ConfigurationError, match="experts"):
        quantize_model(model)
    assert isinstance(model.get_output_embeddings(), nn.Linear)
