"""Tiny random models of every supported language model, and of what may be added to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from salticid.models import VisionLanguageConfig, VisionLanguageModel

VOCABULARY = 64
IMAGE_ID = 63

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_EXPERTS: dict[str, Any] = {"experts": 4, "layers": "alternate"}
_ALL_NORMS: dict[str, Any] = {"query": True, "key": True, "attention_output": True}

# (language model, further options of it, fields of the whole configuration)
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "llama, tied, with biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, {}),
    "llama, stretched positions": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, {}),
    "llama, all norms": ("llama", {}, {"norms": _ALL_NORMS}),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "mistral, window": ("mistral", {"sliding_window": 5}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, {}),
    "qwen3": ("qwen3", {"head_dim": 8}, {}),
    "gemma": ("gemma", {"head_dim": 16, "tie_word_embeddings": True}, {}),
    "gemma2": ("gemma2", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 4, "tie_word_embeddings": True}, {}),
    "phi": ("phi", {}, {}),
    "phi, its own norms": ("phi", {"qk_layernorm": True}, {}),
    "phi, all norms": ("phi", {"num_key_value_heads": 4}, {"norms": _ALL_NORMS}),
    "phi, input norm off": ("phi", {}, {"norms": {**_ALL_NORMS, "key": False, "input": False}}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}, {}),
    "stablelm, parallel, its own norms": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}, {}),
    "experts": ("llama", {}, {"experts": _EXPERTS}),
    "experts of phi": ("phi", {}, {"experts": {**_EXPERTS, "layers": "all", "top_k": 3, "normalise": False}}),
    "experts, DeepSpeed": ("stablelm", {}, {"experts": {**_EXPERTS, "routing": "deepspeed", "eval_capacity_factor": 1.0}}),
    "experts beside a shared one": ("qwen2", {}, {"experts": {**_EXPERTS, "shared_expert": True}}),
    "experts beside a residual": ("qwen2", {}, {"experts": {**_EXPERTS, "residual": True, "top_k": 1}}),
}


def tiny_model(variant: str, dtype: torch.dtype = torch.float32) -> VisionLanguageModel:
    """In evaluation mode, with weights large enough that every token leaves its mark on the logits."""
    language, text, fields = VARIANTS[variant]
    config = VisionLanguageConfig(
        vision_config={"model_type": "efficientnet_lite", "width_coefficient": 0.1, "depth_coefficient": 0.3, "image_size": 64},
        connector_config={"depth": 1},
        text_config={"model_type": language, **_TEXT, **text},
        image_token_id=IMAGE_ID,
        **fields,
    )
    torch.manual_seed(0)
    model = VisionLanguageModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if "embed" in name else parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.tie_weights()
    return model.to(dtype)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., VisionLanguageModel]:
    """`tiny(variant, dtype)`."""
    return tiny_model


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def prompt() -> Callable[..., dict[str, torch.Tensor]]:
    """`prompt(model, words, photos)`: words around photos, the same ones each time."""

    def make(model: VisionLanguageModel, words: int = 7, photos: int = 1, seed: int = 1) -> dict[str, torch.Tensor]:
        chance = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, IMAGE_ID, (words,), generator=chance).tolist()
        marks = [IMAGE_ID] * (photos * model.config.image_tokens)
        inputs = {"input_ids": torch.tensor([[ids[0], *marks, *ids[1:]]])}
        if photos:
            inputs["pixel_values"] = torch.randn(photos, 3, 64, 64, generator=chance).to(model.dtype)
        return inputs

    return make
