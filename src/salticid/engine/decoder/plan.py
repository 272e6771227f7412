"""A language model of transformers read into the few tensors and products that a token needs.

Everything is read from the modules and weights of a loaded model, whose layers differ in the names and the order of their parts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from salticid.engine.decoder.attend import reads_channels
from salticid.engine.decoder.attention import Attention
from salticid.engine.decoder.cache import CacheShape
from salticid.engine.decoder.experts import read_experts
from salticid.engine.decoder.feed_forward import FeedForward, read_dense
from salticid.engine.decoder.layer import Layer
from salticid.engine.decoder.norms import Norm, read_norm
from salticid.engine.decoder.products import Multiply, has_unknown_hooks, read_joined, read_product
from salticid.engine.decoder.rotary import RotaryTable
from salticid.engine.decoder.unplanned import Unplanned
from salticid.models import VisionLanguageModel
from salticid.models.moe.layer import ExpertsLayer

# Names of parts that differ from Llama's, by `model_type`.
NAMES: dict[str, dict[str, str]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"feed_forward_norm": "pre_feedforward_layernorm"},
    "stablelm": {},
    "phi": {"output": "dense", "final_norm": "final_layernorm"},
}
# Layers of these normalise what each half gives, before it is added.
SANDWICHED = ("gemma2",)
# Angles that depend on how long the text has become.
CHANGING_ROPES = ("dynamic", "longrope")


@dataclass(frozen=True)
class Plan:
    """The language model between embeddings and logits. cap: Gemma 2's bound on the logits."""

    layers: tuple[Layer, ...]
    rotary: RotaryTable
    final_norm: Norm
    head: Multiply
    cap: float | None
    cache: CacheShape


@torch.no_grad()
def read_plan(model: VisionLanguageModel) -> Plan:
    """Read the plan. Layers of one input may get one weight, of which theirs become views.

    Raises:
        Unplanned: the model computes something else than such a plan can say.
    """
    config, base = model.config.text_config, _base(model)
    names = NAMES.get(config.model_type)
    if names is None or getattr(config, "use_bidirectional_attention", False):
        raise Unplanned(f"no plan for {config.model_type}")
    if base.rotary_emb.rope_type in CHANGING_ROPES:
        raise Unplanned(f"rotary embeddings of type {base.rotary_emb.rope_type}")
    dtype, device = model.dtype, model.device
    layers = tuple(_read_layer(layer, names, config, dtype) for layer in base.layers)
    attention = layers[0].attention
    by_channel = reads_channels(attention.heads, attention.groups, dtype, device)
    return Plan(
        layers=layers,
        rotary=RotaryTable(base.rotary_emb, dtype, device),
        final_norm=read_norm(getattr(base, names.get("final_norm", "norm")), dtype),
        head=read_product(model.get_output_embeddings()),
        cap=getattr(config, "final_logit_softcapping", None),
        cache=CacheShape(len(layers), attention.groups, attention.depth, dtype, device, by_channel),
    )


def _base(model: VisionLanguageModel) -> Any:
    base: Any = model.language_model.base_model
    if any(has_unknown_hooks(module) for module in (model, model.language_model, base)):
        raise Unplanned("the language model has hooks")
    return base


def _read_layer(layer: Any, names: dict[str, str], config: Any, dtype: torch.dtype) -> Layer:
    if has_unknown_hooks(layer) or has_unknown_hooks(layer.mlp):
        raise Unplanned("a decoder layer has hooks")
    sandwiched = config.model_type in SANDWICHED
    after = [layer.post_attention_layernorm] if sandwiched else []
    if (extra := getattr(layer.self_attn, "output_layernorm", None)) is not None:
        after.insert(0, extra)
    second = getattr(layer, names.get("feed_forward_norm", "post_attention_layernorm"), None)
    return Layer(
        input_norm=read_norm(layer.input_layernorm, dtype),
        attention=_read_attention(layer.self_attn, names, config, dtype),
        attention_norms=tuple(read_norm(norm, dtype) for norm in after),
        feed_forward_norm=None if second is None else read_norm(second, dtype),
        feed_forward=_read_feed_forward(layer.mlp),
        output_norm=read_norm(layer.post_feedforward_layernorm, dtype) if sandwiched else None,
    )


def _read_attention(attention: Any, names: dict[str, str], config: Any, dtype: torch.dtype) -> Attention:
    if has_unknown_hooks(attention):
        raise Unplanned("attention has hooks")
    query_norm, key_norm = (_head_norm(attention, letter, dtype) for letter in "qk")
    return Attention(
        project=read_joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        output=read_product(getattr(attention, names.get("output", "o_proj"))),
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        depth=attention.head_dim,
        scale=attention.scaling,
        query_norm=query_norm,
        key_norm=key_norm,
        softcap=getattr(attention, "attn_logit_softcapping", None),
        window=_window(attention, config),
    )


def _head_norm(attention: nn.Module, letter: str, dtype: torch.dtype) -> Norm | None:
    """Qwen3's `q_norm`, or the `q_layernorm` of Phi, of StableLM and of our own extra normalisations."""
    found = [name for name in (f"{letter}_norm", f"{letter}_layernorm") if hasattr(attention, name)]
    return read_norm(attention.get_submodule(found[0]), dtype) if found else None


def _window(attention: Any, config: Any) -> int | None:
    """Mistral's window is every layer's, that of Qwen and Gemma 2 some layers' own."""
    window = attention.sliding_window if hasattr(attention, "sliding_window") else getattr(config, "sliding_window", None)
    return None if window is None else int(window)


def _read_feed_forward(mlp: nn.Module) -> FeedForward:
    return read_experts(mlp) if isinstance(mlp, ExpertsLayer) else read_dense(mlp)
