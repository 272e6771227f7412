"""Tiny random models with a tokenizer, of any tower and decoder, whose weights all leave their mark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from salticid.checkpoints.load import load_processor
from salticid.models import SalticidImageProcessor, VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor

Built = tuple[VisionLanguageModel, VisionLanguageProcessor]
VIT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
LITE = {"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 32}


@pytest.fixture(scope="session")
def build(tiny_model_folder: Path) -> Callable[..., Built]:
    """`build(tower, language, text=..., connector=..., **fields)`: model and processor."""
    tokenizer: Any = load_processor(tiny_model_folder).tokenizer

    def make(
        tower: str = "efficientnet_lite",
        language: str = "llama",
        text: dict[str, Any] | None = None,
        connector: dict[str, Any] | None = None,
        vision: dict[str, Any] | None = None,
        image: str = "llava_pad",
        **fields: Any,
    ) -> Built:
        decoder = {
            "model_type": language,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4 if language == "phi" else 2,
            "vocab_size": len(tokenizer) + 3,  # as Phi-2 and Qwen have: more rows than tokens
            "max_position_embeddings": 128,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        }
        config = VisionLanguageConfig(
            vision_config=(dict(LITE) if tower == "efficientnet_lite" else {"model_type": tower, **VIT}) | (vision or {}),
            text_config=decoder | (text or {}),
            connector_config={"depth": 2, "hidden_size": 40} | (connector or {}),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            **{"template": "nano", **fields},
        )
        torch.manual_seed(0)
        model = VisionLanguageModel(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3 if "embed" in name else parameter[0].numel() ** -0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        images = SalticidImageProcessor.from_preset(image, size=config.vision_config.image_size)
        return model, VisionLanguageProcessor(images, tokenizer, image_tokens=config.image_tokens)

    return make


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """Square, so that no square must be made of it."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))


def read_gguf(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import gguf

    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


@pytest.fixture(scope="session")
def read() -> Callable[[Path], tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """A GGUF file's tensors in float32, and its keys."""
    pytest.importorskip("gguf")
    return read_gguf
