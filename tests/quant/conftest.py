"""Tiny random models of several makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from salticid.models import VisionLanguageConfig, VisionLanguageModel

VISION = {"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64, "classes": 6}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
QFORMER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "encoder_hidden_size": 1280}
MAKES: dict[str, dict[str, Any]] = {
    "llama tied": {"text": {"model_type": "llama", "tie_word_embeddings": True}},
    "llama untied": {"text": {"model_type": "llama", "tie_word_embeddings": False}},
    "phi": {"text": {"model_type": "phi", "tie_word_embeddings": False}},
    "gemma": {"text": {"model_type": "gemma", "tie_word_embeddings": True, "head_dim": 16}},
    "qformer": {
        "text": {"model_type": "llama", "tie_word_embeddings": True},
        "connector": {"kind": "qformer", "queries": 4, "boxed_queries": True, "depth": 2, "activation": None, "qformer_config": QFORMER},
    },
}
IMAGE_TOKEN = 3
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 32,
}
MAKES["experts"] = {
    "text": {"model_type": "llama", "tie_word_embeddings": False, "num_hidden_layers": 3},
    "model": {"vision_config": CLIP, "vision_layers": [-2], "experts": {"residual": True}},
}


@pytest.fixture
def build() -> Callable[[str], VisionLanguageModel]:
    """A function from the name of a make to a model in float32, always with the same weights."""

    def make(name: str) -> VisionLanguageModel:
        make = MAKES[name]
        torch.manual_seed(0)
        values: dict[str, Any] = {
            "vision_config": VISION,
            "text_config": TEXT | make["text"],
            "connector_config": make.get("connector", {"depth": 2, "hidden_size": 48, "norm": True}),
            "image_token_id": IMAGE_TOKEN,
        }
        config = VisionLanguageConfig(**values | make.get("model", {}))
        model = VisionLanguageModel(config).eval()
        if model.get_output_embeddings().bias is not None:
            torch.nn.init.normal_(model.get_output_embeddings().bias)
        return model

    return make


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """One photo of four image tokens and a few words."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([[5, *[IMAGE_TOKEN] * 4, 17, 8, 99, 42]]),
        "pixel_values": torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1,
    }


class Recorder(TorchDispatchMode):
    """Records the names of the operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def operations() -> Callable[[Callable[[Tensor], Tensor], Tensor], list[str]]:
    """The names of the operations that a layer or a product runs on an input."""

    def run(multiply: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
        with Recorder() as recorder:
            multiply(x)
        return recorder.names

    return run
