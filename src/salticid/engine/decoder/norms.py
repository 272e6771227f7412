"""Normalisations as plain functions of a module's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from salticid.engine.decoder.unplanned import Unplanned

Norm = Callable[[Tensor], Tensor]


def read_norm(module: nn.Module, dtype: torch.dtype) -> Norm:
    """What the module computes, in float32 and given back in `dtype`.

    Raises:
        Unplanned: the module's class is not in `READERS`.
    """
    name = type(module).__name__
    if name not in READERS:
        raise Unplanned(f"no plan for the normalisation {name}; known: {', '.join(READERS)}")
    return READERS[name](module, dtype)


def rms_norm(x: Tensor, scale: Tensor, tiny: Tensor, dtype: torch.dtype) -> Tensor:
    """RMSNorm (arXiv 1910.07467) over the last axis.

    `scale` is the weight times sqrt(D), `tiny` sqrt(D * eps), both float32: x / sqrt(mean(x^2) + eps) = x * sqrt(D) / hypot(|x|, tiny).
    Fewer operations than `torch.rms_norm`, which is no fused kernel on processors.
    """
    x = x.float()
    return (x * scale).div_(torch.linalg.vector_norm(x, 2, -1, True).hypot_(tiny)).to(dtype)


class Rms:
    """RMSNorm over the last axis."""

    def __init__(self, weight: Tensor, eps: float, dtype: torch.dtype):
        self.weight, self.eps, self._dtype = weight.detach().float(), eps, dtype
        width = weight.shape[-1]
        self._scale = self.weight * width**0.5
        self._tiny = self._scale.new_tensor((width * eps) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self._scale, self._tiny, self._dtype)


class Layered:
    """LayerNorm over the last axis."""

    def __init__(self, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype):
        self._shape, self.eps, self._dtype = shape, eps, dtype
        self.weight, self.bias = (None if tensor is None else tensor.detach().float() for tensor in (weight, bias))

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x.float(), self._shape, self.weight, self.bias, self.eps).to(self._dtype)


class PerHead:
    """LayerNorm over the last axis, where each head (H, K) has a weight of its own: StableLM's."""

    def __init__(self, weight_HK: Tensor, eps: float, dtype: torch.dtype):
        self.weight_HK, self.eps, self._dtype = weight_HK, eps, dtype

    def __call__(self, x_MHK: Tensor) -> Tensor:
        return (torch.layer_norm(x_MHK.float(), self.weight_HK.shape[-1:], None, None, self.eps) * self.weight_HK).to(self._dtype)


def _variance(module: Any, dtype: torch.dtype) -> Norm:
    return Rms(module.weight, module.variance_epsilon, dtype)


def _one_more(module: Any, dtype: torch.dtype) -> Norm:
    """Gemma's weight is what is added to one."""
    return Rms(1 + module.weight.detach().float(), module.eps, dtype)


def _layer_norm(module: Any, dtype: torch.dtype) -> Norm:
    return Layered(module.normalized_shape, module.weight, module.bias, module.eps, dtype)


def _per_head(module: Any, dtype: torch.dtype) -> Norm:
    return PerHead(torch.stack([norm.weight.detach().float() for norm in module.norms]), module.norms[0].eps, dtype)


class Unchanged:
    """No normalisation."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self._dtype)


# By the name of the class: importing eight modelling files to compare classes would cost more than all that they are needed for.
READERS: dict[str, Callable[[Any, torch.dtype], Norm]] = {
    "LayerNorm": _layer_norm,
    "HeadLayerNorm": _layer_norm,
    "StableLmLayerNormPerHead": _per_head,
    "LlamaRMSNorm": _variance,
    "MistralRMSNorm": _variance,
    "Qwen2RMSNorm": _variance,
    "Qwen3RMSNorm": _variance,
    "GemmaRMSNorm": _one_more,
    "Gemma2RMSNorm": _one_more,
    "RootMeanSquareLayerNorm": lambda module, dtype: Rms(module.weight, module.eps, dtype),
    "Identity": Unchanged,
}
