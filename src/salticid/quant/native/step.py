"""A whole decoder as `step.c` reads it: structures of addresses, and the tensors that they point to.

What one token costs is then one call. The structures have the fields of those in `step.c`, in their order.

Shape legend: D width, H query heads, G key-value heads, K depth of a head, R of its channels that are turned, F ffn, E experts, N outputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salticid.quant import native

LAYER_NORM, RMS_NORM = 1, 2
SILU, GELU_TANH = 0, 1
MOST_EXPERTS = 64

_A, _N, _D = ctypes.c_void_p, ctypes.c_long, ctypes.c_double


class Norm(ctypes.Structure):
    _fields_ = (("weight", _A), ("bias", _A), ("epsilon", _D), ("kind", _N), ("apart", _N))


class Product(ctypes.Structure):
    _fields_ = (
        *((name, _A) for name in ("weight", "scales", "bias", "input_scale")),
        *((name, _N) for name in ("bits", "width", "outputs", "filled", "group")),
    )


class FeedForward(ctypes.Structure):
    _fields_ = (("ups", Product * 2), ("down", Product), ("count", _N), ("gated", _N), ("activation", _N))


class Layer(ctypes.Structure):
    _fields_ = (
        *((name, Norm) for name in ("input", "query", "key")),
        ("attended", Norm * 2),
        ("second", Norm),
        ("output", Norm),
        ("projections", Product * 3),
        ("out", Product),
        ("networks", ctypes.POINTER(FeedForward)),
        ("router", _A),
        ("scale", _D),
        ("softcap", _D),
        *((name, _N) for name in ("count", "parallel", "window", "experts", "chosen", "normalised")),
    )


class Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("final", Norm),
        ("head", Product),
        *((name, _N) for name in ("count", "width", "heads", "groups", "depth", "turned", "ffn", "vocabulary")),
    )


class Token(ctypes.Structure):
    _fields_ = (
        *((name, _A) for name in ("x", "cosine", "sine", "keys", "values")),
        ("key_steps", _N * 3),
        ("value_steps", _N * 3),
        ("position", _N),
        ("logits", _A),
    )


class Kept:
    """Keeps tensors and structures alive as long as something may point to them."""

    def __init__(self) -> None:
        self._held: list[Any] = []

    def address(self, tensor: Tensor | None, dtype: torch.dtype | None = None) -> int | None:
        """Of a tensor, contiguous and in `dtype`; `None` of none."""
        if tensor is None:
            return None
        made = tensor.detach().to(dtype or tensor.dtype).contiguous()
        self._held.append(made)
        return made.data_ptr()

    def array(self, kind: Any, items: Sequence[Any]) -> Any:
        """A C array of structures, and a pointer to it."""
        made = (kind * len(items))(*items)
        self._held.append(made)
        return made

    def norm(self, kind: int, weight: Tensor | None, bias: Tensor | None, epsilon: float, apart: int = 0) -> Norm:
        address, own_bias = self.address(weight, torch.float32), self.address(bias, torch.float32)
        return Norm(address, own_bias, epsilon, kind, apart)


@dataclass(frozen=True)
class Step:
    """A decoder that reads one token per call."""

    decoder: Decoder
    kept: Kept

    def __call__(self, x_D: Tensor, cosine_R: Tensor, sine_R: Tensor, keys_LGSK: Tensor, values_LGSK: Tensor, position: int) -> Tensor:
        """Logits (V,) in float32 of the word after a token; its key and value are written into the cache at `position`.

        Args:
            x_D, cosine_R, sine_R: float32; the first half of the sines with its sign changed.
            keys_LGSK: bfloat16, the transpose of a store that lies channel by channel; values_LGSK: token by token.
        """
        x_D, cosine_R, sine_R = x_D.contiguous(), cosine_R.contiguous(), sine_R.contiguous()
        logits_V = torch.empty(self.decoder.vocabulary)
        key, value = keys_LGSK.stride(), values_LGSK.stride()
        token = Token(
            x_D.data_ptr(),
            cosine_R.data_ptr(),
            sine_R.data_ptr(),
            keys_LGSK.data_ptr(),
            values_LGSK.data_ptr(),
            (key[0], key[1], key[3]),
            (value[0], value[1], value[2]),
            position,
            logits_V.data_ptr(),
        )
        return native.run_step(self.decoder, token, logits_V)
