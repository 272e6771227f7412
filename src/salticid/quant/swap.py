"""How the layers that a plan names change places with their float originals, and back."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from salticid.models import VisionLanguageModel
from salticid.models.moe.experts import Experts
from salticid.quant.experts import Int4Experts, Int8Experts
from salticid.quant.int4 import Int4Embedding, Int4Linear
from salticid.quant.int8 import Int8Embedding, Int8Linear
from salticid.quant.plan import Place, Precision, make_plan

SMALL_LAYERS = (Int8Linear, Int8Embedding, Int8Experts, Int4Linear, Int4Embedding, Int4Experts)


def swap_to_small(model: VisionLanguageModel, precision: Precision) -> None:
    """Put small layers in the place of float ones, one after the other, so that both are in memory for one layer only.

    On "meta" this makes the places that a checkpoint's tensors go to.

    Raises:
        ConfigurationError: see `make_plan`; or a weight holds NaN or infinity.
    """
    for place in make_plan(model, precision):
        replace(model, place.name, small_layer(model.get_submodule(place.name), place))
    _tie(model)


def small_layer(module: nn.Module, place: Place) -> nn.Module:
    """The small layer that takes the place of a float one, with weights rounded to the nearest."""
    if place.group is None:
        if place.kind == "experts":
            return Int8Experts.from_float(cast(Experts, module))
        return (
            Int8Linear.from_float(cast(nn.Linear, module))
            if place.kind == "linear"
            else Int8Embedding.from_float(cast(nn.Embedding, module))
        )
    if place.kind == "experts":
        return Int4Experts.from_float(cast(Experts, module), place.group, place.scaled)
    if place.kind == "linear":
        return Int4Linear.from_float(cast(nn.Linear, module), place.group, place.scaled)
    return Int4Embedding.from_float(cast(nn.Embedding, module), place.group)


def swap_to_float(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    """Put plain layers in `dtype`, with the rounded weights, in the place of small ones, and tie the output head again."""
    for name in [name for name, module in model.named_modules() if isinstance(module, SMALL_LAYERS)]:
        replace(model, name, cast(Int8Linear, model.get_submodule(name)).to_float(dtype))
    _declare_tied(model, [])
    model.tie_weights()


def replace(root: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` where `root` has the module `name`."""
    parent, _, attribute = name.rpartition(".")
    owner = root.get_submodule(parent)
    setattr(owner, attribute, replacement.train(owner.training))


def _tie(model: VisionLanguageModel) -> None:
    """Let a tied output head use the table and the scales of the embeddings."""
    if not model.config.tie_word_embeddings:
        return
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = dict(embeddings.named_parameters())
    for name, parameter in shared.items():
        setattr(head, name, parameter)
    _declare_tied(model, [name for name in shared if name != "weight"])


def _declare_tied(model: VisionLanguageModel, extra: list[str]) -> None:
    """Tell transformers' saving and loading that the head's scales are tied too; it knows of `weight` alone."""
    language_model = model.language_model
    tied = {target: source for target, source in (type(language_model)._tied_weights_keys or {}).items() if target.endswith("weight")}
    language_model._tied_weights_keys = tied | {
        target.replace("weight", name): source.replace("weight", name) for target, source in tied.items() for name in extra
    }
    for owner in (language_model, model):
        owner.all_tied_weights_keys = owner.get_expanded_tied_weights_keys(all_submodels=True)
