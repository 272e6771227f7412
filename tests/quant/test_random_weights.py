from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from salticid.engine.load import load
from salticid.errors import CheckpointError
from salticid.models.shapes import Shape
from salticid.quant import Int4Experts, Int4Linear, Int8Linear
from salticid.quant.random_weights import write_random_model

PHOTO = np.zeros((20, 20, 3), dtype=np.uint8)


def small(name: str) -> Shape:
    """The shape with its parts in miniature."""
    shape = Shape.named(name).with_layers(2)
    values = shape.values
    values["text_config"] |= {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
    }
    if name != "nano":
        values["vision_config"] |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        values["vision_config"] |= {"image_size": 56}
    connector = values["connector_config"]
    if connector.get("kind") == "qformer":
        connector["qformer_config"] |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        connector["qformer_config"] |= {"encoder_hidden_size": 64}
    return Shape(name, values)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["tinygpt-v", "moe-llava-phi2"])
def test_random_folders_load_and_answer(name: str, bits: int, tmp_path: Path) -> None:
    write_random_model(small(name), tmp_path / "out", bits=bits, group=32)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    vlm = load(tmp_path / "out", device="cpu")
    assert isinstance(vlm.ask(PHOTO, "What?", max_new_tokens=3), str)
    layer = vlm.model.language_model.model.layers[0]
    assert type(layer.self_attn.q_proj) is (Int4Linear if bits == 4 else Int8Linear)
    if name == "moe-llava-phi2" and bits == 4:
        assert isinstance(layer.mlp.experts, Int4Experts)
    deviation = layer.self_attn.q_proj.to_float(torch.float32).weight.std().item()
    assert deviation == pytest.approx(0.02, rel=0.1)
    with pytest.raises(CheckpointError, match="exists already"):
        write_random_model(small(name), tmp_path / "out", bits=bits)


def test_weights_are_the_same_each_time_and_differ_from_layer_to_layer(tmp_path: Path) -> None:
    for out in ("a", "b"):
        write_random_model(small("phi-2"), tmp_path / out, bits=4)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    layers = load(tmp_path / "a", device="cpu").model.language_model.model.layers
    assert not torch.equal(layers[0].self_attn.q_proj.weight, layers[1].self_attn.q_proj.weight)
