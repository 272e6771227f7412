"""Which weights learn, and how fast; and how the others rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from salticid.errors import ConfigurationError
from salticid.models.moe.experts import Experts
from salticid.train.precision import DTYPES
from salticid.train.recipe import PartRecipe

PARTS = ("vision_tower", "connector", "language_model")
LORA = r"\.lora_[AB]\b"


def freeze_except(model: nn.Module, parts: Mapping[Any, PartRecipe]) -> None:
    """Let the named parts learn and nothing else; of a language model that carries LoRA, the LoRA, unless `only` says otherwise."""
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise ConfigurationError(f"no such part to train: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    model.requires_grad_(False)  # a phrase head, too, which no stage trains
    for name in PARTS:
        part = getattr(model, name)
        part.requires_grad_(name in parts)
        only = parts[name].only if name in parts else None
        if only is None and name in parts and any(re.search(LORA, key) for key, _ in part.named_parameters()):
            only = [LORA]
        if only is not None:
            freeze_part(part, f"train.{name}", only)


def freeze_part(part: nn.Module, name: str, patterns: list[str] | None) -> None:
    """Of a part, let what matches one of the patterns learn; without patterns, all of it. `name` is what the recipe calls it.

    Raises:
        ConfigurationError: a pattern that matches nothing.
    """
    if patterns is None:
        part.requires_grad_(True)
        return
    unused = set(patterns)
    for key, parameter in part.named_parameters():
        matching = {pattern for pattern in patterns if re.search(pattern, key)}
        parameter.requires_grad_(bool(matching))
        unused -= matching
    if unused:
        patterns_unused = ", ".join(sorted(unused))
        raise ConfigurationError(f"{name}.only: no parameter matches {patterns_unused}; see named_parameters() of that part")


def learning_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name, each once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def resting_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The largest modules that have parameters of which none learns."""
    if not any(True for _ in model.parameters()):
        return
    if not any(parameter.requires_grad for parameter in model.parameters()):
        yield model
        return
    for child in model.children():
        yield from resting_modules(child)


def lower_frozen(model: nn.Module, precision: str) -> None:
    """Keep the frozen matrices of linear layers, convolutions and experts in `precision`; the stream between layers stays float32."""
    dtype = DTYPES[precision]
    # An output head may be the embedding itself, with which the stream begins.
    embeddings = {id(parameter) for module in model.modules() if isinstance(module, nn.Embedding) for parameter in module.parameters()}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | Experts | ParametrizationList):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and id(parameter) not in embeddings:
                    parameter.data = parameter.data.to(dtype)


def parameter_groups(model: nn.Module, parts: Mapping[Any, PartRecipe]) -> list[dict[str, Any]]:
    """Optimizer groups: per part its learning rate; vectors (norms) and biases are not decayed."""
    groups: list[dict[str, Any]] = []
    for name, part in parts.items():
        learning = learning_parameters(getattr(model, name))
        for decayed in (True, False):
            chosen = [parameter for key, parameter in learning.items() if (parameter.ndim > 1 and not key.endswith("bias")) == decayed]
            if chosen:
                groups.append({"params": chosen, "lr": part.learning_rate, "weight_decay": part.weight_decay if decayed else 0.0})
    return groups
