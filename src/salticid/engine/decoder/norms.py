"""Normalisations as plain functions of a module's weights."""

from __future__ import annotations

from collections.abc import Callable
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


def _rms(weight: Tensor, eps: float, dtype: torch.dtype) -> Norm:
    width = weight.shape[-1]
    scale = weight.detach().float() * width**0.5
    tiny = scale.new_tensor((width * eps) ** 0.5)
    return lambda x: rms_norm(x, scale, tiny, dtype)


def _variance(module: Any, dtype: torch.dtype) -> Norm:
    return _rms(module.weight, module.variance_epsilon, dtype)


def _one_more(module: Any, dtype: torch.dtype) -> Norm:
    """Gemma's weight is what is added to one."""
    return _rms(1 + module.weight.detach().float(), module.eps, dtype)


def _layer_norm(module: Any, dtype: torch.dtype) -> Norm:
    shape, eps = module.normalized_shape, module.eps
    weight, bias = (None if tensor is None else tensor.detach().float() for tensor in (module.weight, module.bias))
    return lambda x: torch.layer_norm(x.float(), shape, weight, bias, eps).to(dtype)


def _per_head(module: Any, dtype: torch.dtype) -> Norm:
    """StableLM's: each head has a weight of its own."""
    weight_HK = torch.stack([norm.weight.detach().float() for norm in module.norms])
    shape, eps = module.norms[0].normalized_shape, module.norms[0].eps
    return lambda x_MHK: (torch.layer_norm(x_MHK.float(), shape, None, None, eps) * weight_HK).to(dtype)


def _identity(module: nn.Module, dtype: torch.dtype) -> Norm:
    return lambda x: x.to(dtype)


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
    "RootMeanSquareLayerNorm": lambda module, dtype: _rms(module.weight, module.eps, dtype),
    "Identity": _identity,
}
