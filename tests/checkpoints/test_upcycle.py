"""Dense model folders to sparse ones: every backbone answers as before, and what cannot be done is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from salticid.checkpoints.load import load_config, load_model, load_processor
from salticid.checkpoints.upcycle import upcycle_folder
from salticid.errors import CheckpointError, ConfigurationError, ModelNotFoundError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.models.configuration import LANGUAGE_MODELS
from salticid.models.moe import ExpertsConfig

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 4,
}
# TinyGPT-V's Phi normalises queries and keys.
BACKBONES = {name: {"model_type": name} for name in LANGUAGE_MODELS} | {"tinygpt-v": {"model_type": "phi", "qk_layernorm": True}}


def dense_folder(folder: Path, backbone: str, dtype: torch.dtype = torch.float32) -> Path:
    text = {**SIZES, **BACKBONES[backbone]}
    if backbone in ("qwen3", "gemma", "gemma2"):
        text["head_dim"] = 8
    torch.manual_seed(0)
    model = VisionLanguageModel(VisionLanguageConfig(vision_config=TOWER, text_config=text, image_token_id=31))
    for parameter in model.parameters():  # biases, too, which start as zeros
        torch.nn.init.normal_(parameter, std=0.3)
    model.to(dtype).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: VisionLanguageModel) -> Tensor:
    ids = torch.tensor([[1, 31, 31, 31, 31, 5, 6, 7], [2, 3, 31, 31, 31, 31, 9, 10]])
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return model.eval()(input_ids=ids, pixel_values=pixels.to(model.dtype)).logits


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_answers_as_before(tmp_path: Path, backbone: str) -> None:
    source = dense_folder(tmp_path / "dense", backbone)
    upcycle_folder(source, tmp_path / "sparse", ExpertsConfig())
    dense, sparse = load_model(source), load_model(tmp_path / "sparse")
    assert {index for index, layer in enumerate(sparse.language_model.base_model.layers) if hasattr(layer.mlp, "experts")} == {0, 2}
    assert sparse.num_parameters() > dense.num_parameters()
    torch.testing.assert_close(logits(sparse), logits(dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"routing": "deepspeed"}, {"shared_expert": True}, {"experts": (4, 2), "top_k": 1, "layers": (1, 2)}])
def test_options_are_saved_and_answer_as_before(tmp_path: Path, options: dict[str, Any]) -> None:
    source = dense_folder(tmp_path / "dense", "llama")
    config = ExpertsConfig(**options)
    upcycle_folder(source, tmp_path / "sparse", config)
    assert ExpertsConfig.from_dict(load_config(tmp_path / "sparse").experts) == config
    torch.testing.assert_close(logits(load_model(tmp_path / "sparse")), logits(load_model(source)), rtol=1e-5, atol=1e-5)


def test_precision_and_everything_beside_the_weights_are_kept(tmp_path: Path, tiny_model_folder: Path) -> None:
    upcycle_folder(tiny_model_folder, tmp_path / "sparse", ExpertsConfig(layers="all"))
    assert load_processor(tmp_path / "sparse").image_tokens == load_processor(tiny_model_folder).image_tokens
    assert load_model(tmp_path / "sparse").generation_config.to_dict() == load_model(tiny_model_folder).generation_config.to_dict()
    upcycle_folder(dense_folder(tmp_path / "half", "llama", torch.bfloat16), tmp_path / "sparse half", ExpertsConfig())
    config = load_config(tmp_path / "sparse half")
    assert config.dtype == torch.bfloat16
    model = load_model(tmp_path / "sparse half", dtype=config.dtype)
    layer = model.language_model.base_model.layers[0].mlp
    assert (layer.experts.down_proj.dtype, layer.router.wg.weight.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(logits(model), logits(load_model(tmp_path / "half", dtype=torch.bfloat16)))


def test_the_seed_decides(tmp_path: Path) -> None:
    source = dense_folder(tmp_path / "dense", "llama")
    state = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        upcycle_folder(source, tmp_path / name, ExpertsConfig(), reinitialise=0.5, noise=0.1, seed=seed)
        experts = load_model(tmp_path / name).language_model.base_model.layers[0].mlp
        state[name] = (experts.router.wg.weight, experts.experts.down_proj)
        assert not torch.equal(experts.experts.down_proj[0], experts.experts.down_proj[1])
    assert all(torch.equal(a, b) for a, b in zip(state["a"], state["b"], strict=True))
    assert not any(torch.equal(a, c) for a, c in zip(state["a"], state["c"], strict=True))


def test_what_cannot_be_done(tmp_path: Path) -> None:
    source = dense_folder(tmp_path / "dense", "llama")
    upcycle_folder(source, tmp_path / "sparse", ExpertsConfig())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="has experts already"):
        upcycle_folder(tmp_path / "sparse", tmp_path / "again", ExpertsConfig())
    with pytest.raises(ConfigurationError, match="layers 0 to 2"):
        upcycle_folder(source, tmp_path / "again", ExpertsConfig(layers=(0, 3)))
    with pytest.raises(CheckpointError, match="exists already"):
        upcycle_folder(source, tmp_path / "sparse", ExpertsConfig())
    with pytest.raises(ModelNotFoundError):
        upcycle_folder(tmp_path / "nowhere", tmp_path / "again", ExpertsConfig())
    assert sorted(tmp_path.iterdir()) == before
