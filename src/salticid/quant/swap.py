"""Which layers of a model are held in int8, and how they change places with their float originals.

Linear layers of the connector and the language model, the word embeddings and the output head. The vision tower, norms, biases and
learned queries stay as they are.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.models.moe.layer import ExpertsLayer
from salticid.quant.int8 import Int8Embedding, Int8Linear

INT8_LAYERS = (Int8Linear, Int8Embedding)


def check_quantizable(model: VisionLanguageModel) -> None:
    """Raises `ConfigurationError` for a model with experts, or with embeddings that do more than look up and multiply."""
    if any(isinstance(module, ExpertsLayer) for module in model.modules()):
        raise ConfigurationError("a model with experts cannot be quantised to 8 bits yet; use it in bfloat16")
    embeddings = model.get_input_embeddings()
    if type(embeddings) is not nn.Embedding and not hasattr(embeddings, "scalar_embed_scale"):
        raise ConfigurationError(
            f"embeddings of class {type(embeddings).__name__} cannot be quantised; use a language model with a plain table"
        )


def swap_to_int8(model: VisionLanguageModel) -> None:
    """Put int8 layers in the place of float ones, one after the other, so that both are in memory for one layer only.

    On "meta" this makes the places that a checkpoint's tensors go to.

    Raises:
        ConfigurationError: see `check_quantizable`; or a weight holds NaN or infinity.
    """
    check_quantizable(model)
    for part in (model.connector, model.language_model):
        for name in [name for name, module in part.named_modules() if type(module) is nn.Linear]:
            _replace(part, name, Int8Linear.from_float(cast(nn.Linear, part.get_submodule(name))))
    model.set_input_embeddings(Int8Embedding.from_float(cast(nn.Embedding, model.get_input_embeddings())))
    _tie(model)


def swap_to_float(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    """Put plain layers in `dtype`, with the rounded weights, in the place of int8 ones, and tie the output head again."""
    for name in [name for name, module in model.named_modules() if isinstance(module, INT8_LAYERS)]:
        _replace(model, name, cast(Int8Linear | Int8Embedding, model.get_submodule(name)).to_float(dtype))
    _declare_tied(model, [])
    model.tie_weights()


def _replace(root: nn.Module, name: str, replacement: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    owner = root.get_submodule(parent)
    setattr(owner, attribute, replacement.train(owner.training))


def _tie(model: VisionLanguageModel) -> None:
    """Let a tied output head use the table and the scales of the embeddings."""
    if not model.config.tie_word_embeddings:
        return
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    head.weight, head.scale = embeddings.weight, embeddings.scale
    _declare_tied(model, ["scale"])


def _declare_tied(model: VisionLanguageModel, extra: list[str]) -> None:
    """Tell transformers' saving and loading that the head's scales are tied too; it knows of `weight` alone."""
    language_model = model.language_model
    tied = type(language_model)._tied_weights_keys or {}
    language_model._tied_weights_keys = tied | {
        target.replace("weight", name): source.replace("weight", name) for target, source in tied.items() for name in extra
    }
    for owner in (language_model, model):
        owner.all_tied_weights_keys = owner.get_expanded_tied_weights_keys(all_submodels=True)
