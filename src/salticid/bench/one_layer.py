"""One decoder layer of a large model, at full width: what layers cost can be found out on one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from salticid.bench.subject import random_model
from salticid.models import VisionLanguageConfig, VisionLanguageModel

SMALLEST_TOWER = {"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 32}
FEW_TOKENS = 16


def one_layer_config(config: VisionLanguageConfig, experts: dict[str, Any] | None) -> VisionLanguageConfig:
    """The same decoder with one layer, few words, and next to no vision tower; with experts in that layer, or without."""
    text = deepcopy(config.text_config).to_dict() | {"num_hidden_layers": 1, "vocab_size": FEW_TOKENS}
    text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "layer_types": None}
    placed = None if experts is None else dict(experts) | {"layers": "all", "experts": _count(experts)}
    return VisionLanguageConfig(
        vision_config=dict(SMALLEST_TOWER), text_config=text, connector_config={"depth": 1}, norms=config.norms, experts=placed
    )


def one_layer_model(config: VisionLanguageConfig, experts: dict[str, Any] | None, dtype: torch.dtype) -> VisionLanguageModel:
    """That model with random weights."""
    return random_model(one_layer_config(config, experts), dtype)


def first_mlp(model: VisionLanguageModel) -> nn.Module:
    """The feed-forward network, or the experts, of the first layer."""
    decoder: Any = model.language_model.base_model
    mlp: nn.Module = decoder.layers[0].mlp
    return mlp


def _count(experts: dict[str, Any]) -> int:
    counts = experts.get("experts", 4)
    return max(counts) if isinstance(counts, list | tuple) else int(counts)
