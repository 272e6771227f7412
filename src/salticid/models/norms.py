"""Extra normalisations for a pretrained decoder: on queries, on keys, on the attention's output, each by its own switch.

TinyGPT-V (arXiv 2312.16862, section 3.2) adds them to Phi-2 so that a small language model takes image tokens without its activations
running off. They are placed inside each attention block after construction, so a decoder with a parallel residual (Phi) and one
with a sequential residual (Llama) are served alike, whatever its projections are later wrapped in (LoRA, low-bit weights).

B batch, T tokens, H heads, K depth of a head, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from salticid.errors import ConfigurationError

NATIVE = "qk_layernorm"  # Phi and StableLM call `q_layernorm` and `k_layernorm` themselves where this attribute is true
PROJECTIONS = {"query": ("q_proj", "q_layernorm"), "key": ("k_proj", "k_layernorm")}


@dataclass(frozen=True)
class NormsConfig:
    """Which normalisations stand in every decoder layer. All off (`input` on) is the language model as it was pretrained.

    query, key: LayerNorm over each head of the queries or keys, one weight for all heads, before the rotary embedding.
    attention_output: RMSNorm on what attention gives, before it is added to the residual.
    input: the decoder layer's own first normalisation; turning it off is the ablation of the paper's table.
    head_eps, output_eps: upstream's, `config.layer_norm_eps` of Phi-2 and LlamaRMSNorm's default. Large ones give room: what is small
        beside the root of its epsilon is scaled by nearly one number, and only what grows beyond is held (docs/norms.md).
    """

    query: bool = False
    key: bool = False
    attention_output: bool = False
    input: bool = True
    head_eps: float = 1e-5
    output_eps: float = 1e-6

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NormsConfig:
        """Raises `ConfigurationError` for an unknown option or a value of another kind."""
        known = {field.name: field.default for field in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ConfigurationError(f"norms has no option {name!r}; known: {', '.join(known)}")
            if isinstance(known[name], bool) != isinstance(value, bool) or not isinstance(value, bool | float | int):
                kind = "true or false" if isinstance(known[name], bool) else "a number"
                raise ConfigurationError(f"norms.{name} is {value!r}; it must be {kind}")
            if not isinstance(value, bool) and not 0 <= value < float("inf"):
                raise ConfigurationError(f"norms.{name} is {value}; it must be a number from 0 on")
        return cls(**values)


class HeadLayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, computed in float32 and given back in the input's precision."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class RootMeanSquareLayerNorm(nn.RMSNorm):  # "RMSNorm" in a name makes Gemma start it at zero, for it adds one to its own
    """RMSNorm over the last axis, computed in float32 and given back in the input's precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.weight is not None
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


def add_norms(language_model: PreTrainedModel, norms: NormsConfig) -> None:
    """Put the normalisations into every decoder layer, as identities: weights one, biases zero.

    The new weights are `self_attn.{q_layernorm,k_layernorm,output_layernorm}` of each layer, upstream's names but for the last
    (`post_layernorm` of the layer there).

    Raises:
        ConfigurationError: the language model already normalises its queries and keys.
    """
    for layer in cast(Any, language_model.base_model).layers:
        attention = layer.self_attn
        if norms.query or norms.key:
            _add_head_norms(attention, norms)
        if norms.attention_output:
            attention.output_layernorm = RootMeanSquareLayerNorm(language_model.config.hidden_size, eps=norms.output_eps)
            attention.register_forward_hook(_normalise_output)
        if not norms.input:
            layer.input_layernorm = nn.Identity()


def _add_head_norms(attention: nn.Module, norms: NormsConfig) -> None:
    if getattr(attention, NATIVE, False) or hasattr(attention, "q_norm"):
        raise ConfigurationError("this language model already normalises its queries and keys; leave norms.query and norms.key off")
    for name, (_, norm) in PROJECTIONS.items():
        setattr(attention, norm, HeadLayerNorm(attention.head_dim, eps=norms.head_eps) if getattr(norms, name) else nn.Identity())
    if hasattr(attention, NATIVE):
        setattr(attention, NATIVE, True)
    else:
        attention.register_forward_pre_hook(_follow_projections)
        _follow_projections(attention)


@dataclass(frozen=True, eq=False)
class _PerHead:
    """Forward hook of a projection: normalise its output (B, T, H * K) head by head."""

    norm: HeadLayerNorm

    def __call__(self, projection: nn.Module, inputs: Any, output_BTD: torch.Tensor) -> torch.Tensor:
        depth = self.norm.normalized_shape[0]
        return self.norm(output_BTD.unflatten(-1, (-1, depth))).flatten(-2)


def _follow_projections(attention: nn.Module, *_: Any) -> None:
    """Keep the hooks on the outermost projection: LoRA wraps the linear layer, and the norm belongs after the sum of the two."""
    for projection, norm in PROJECTIONS.values():
        owner, module = getattr(attention, projection), getattr(attention, norm)
        if isinstance(module, nn.Identity) or any(isinstance(hook, _PerHead) for hook in owner._forward_hooks.values()):
            continue
        for inner in owner.modules():
            for key in [key for key, hook in inner._forward_hooks.items() if isinstance(hook, _PerHead)]:
                del inner._forward_hooks[key]
        owner.register_forward_hook(_PerHead(module))


def _normalise_output(attention: Any, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (attention.output_layernorm(outputs[0]), *outputs[1:])
