"""Which weights learn, and how fast."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from salticid.errors import ConfigurationError
from salticid.train.recipe import PartRecipe

PARTS = ("vision_tower", "connector", "language_model")


def freeze_except(model: nn.Module, parts: Mapping[Any, PartRecipe]) -> None:
    """Let the named parts learn and nothing else."""
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise ConfigurationError(f"no such part to train: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    for name in PARTS:
        part = getattr(model, name)
        part.requires_grad_(name in parts)
        only = parts[name].only if name in parts else None
        if only is not None:
            _freeze_unmatched(part, name, only)


def _freeze_unmatched(part: nn.Module, name: str, patterns: list[str]) -> None:
    unused = set(patterns)
    for key, parameter in part.named_parameters():
        matching = {pattern for pattern in patterns if re.search(pattern, key)}
        parameter.requires_grad_(bool(matching))
        unused -= matching
    if unused:
        patterns_unused = ", ".join(sorted(unused))
        raise ConfigurationError(f"train.{name}.only: no parameter matches {patterns_unused}; see model.{name}.named_parameters()")


def parameter_groups(model: nn.Module, parts: Mapping[Any, PartRecipe]) -> list[dict[str, Any]]:
    """Optimizer groups: per part its learning rate; vectors (norms, biases) are not decayed."""
    groups: list[dict[str, Any]] = []
    for name, part in parts.items():
        learning = [parameter for parameter in getattr(model, name).parameters() if parameter.requires_grad]
        for decayed in (True, False):
            chosen = [parameter for parameter in learning if (parameter.ndim > 1) == decayed]
            if chosen:
                groups.append({"params": chosen, "lr": part.learning_rate, "weight_decay": part.weight_decay if decayed else 0.0})
    return groups
