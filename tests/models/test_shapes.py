from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.models.shapes import SHAPES, Shape

# The published models' names for themselves, with what only transformers' Phi has beside them: a bias of the output head.
RECORDED = {
    "moe-llava-phi2": ("MoE-LLaVA-Phi2-2.7B-4e.json", 51200),
    "moe-llava-stablelm": ("MoE-LLaVA-StableLM-1.6B-4e.json", 0),
    "moe-llava-qwen": ("MoE-LLaVA-Qwen-1.8B-4e.json", 0),
}


def parameters(shape: Shape) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VisionLanguageModel(shape.config()).parameters())


@pytest.mark.parametrize("name", RECORDED)
def test_sizes_are_those_of_the_published_models(name: str, shared: Path) -> None:
    file, extra = RECORDED[name]
    recorded = json.loads((shared / "fixtures" / "fullsize_keys" / file).read_text())
    assert parameters(Shape.named(name)) == recorded["n_params_incl_buffers"] + extra


def test_tinygpt_v_has_the_published_tensors(shared: Path) -> None:
    recorded = json.loads((shared / "fixtures" / "fullsize_keys" / "TinyGPT-V_peft0.2.0.json").read_text())["full_state_dict_stage4"]
    # Upstream has no biases of the keys in its tower, which transformers holds as zeros.
    published = sum(torch.Size(size).numel() for name, size in recorded.items() if ".lora_" not in name and "position_ids" not in name)
    with torch.device("meta"):
        state = VisionLanguageModel(Shape.named("tinygpt-v").config()).state_dict()
    key_biases = 39 * 1408
    assert sum(tensor.numel() for tensor in state.values()) == published + key_biases


def test_nano_is_the_embedded_model() -> None:
    embedded = VisionLanguageConfig.from_pretrained(str(files("salticid") / "assets" / "nano"))
    ours = Shape.named("nano").config()
    for part in ("vision_config", "text_config", "connector_config"):
        left, right = getattr(embedded, part).to_dict(), getattr(ours, part).to_dict()
        for key in SHAPES["nano"][part]:
            assert left[key] == pytest.approx(right[key]) if isinstance(left[key], float) else left[key] == right[key], key
    assert (embedded.image_tokens, embedded.template) == (ours.image_tokens, ours.template)


@pytest.mark.parametrize("name", SHAPES)
def test_layers_are_cut_and_the_table_stays(name: str) -> None:
    short = Shape.named(name).with_layers(2).config()
    assert short.text_config.num_hidden_layers == 2
    whole = SHAPES[name]["text_config"]["num_hidden_layers"]
    assert whole > 2
    with pytest.raises(ConfigurationError, match=f"keep between 1 and {whole}"):
        Shape.named(name).with_layers(whole + 1)


def test_an_unknown_shape_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown shape 'phi-3'; known: phi-2, tinygpt-v"):
        Shape.named("phi-3")
