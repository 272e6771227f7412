"""Layers that read the same input become one layer; what is left of each is a view of its rows.

Shape legend: N output channels, K input channels, T tiles of 64 rows, G groups, P rows filled up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from salticid.quant.int4 import TILE, Int4Linear
from salticid.quant.int8 import Int8Linear


def join(layers: Sequence[nn.Module]) -> nn.Module | None:
    """One layer whose outputs are those of `layers`, one after the other; `None` where they differ too much to be one.

    Weights move into one tensor, which the given layers keep views of: nothing is held twice. Scales and biases are copied.
    """
    kind = type(layers[0])
    known = kind in _JOINS and all(type(layer) is kind for layer in layers)
    return _JOINS[kind](layers) if known and len({_traits(layer) for layer in layers}) == 1 else None


def _traits(layer: Any) -> tuple[Any, ...]:
    weight = layer.weight
    return weight.dtype, weight.device, layer.in_features, None if layer.bias is None else layer.bias.dtype


def _join_linear(layers: Sequence[Any]) -> nn.Module:
    joined: Any = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False, device="meta")
    joined.weight = nn.Parameter(_move_weights(layers), requires_grad=False)
    bias = _join_bias(layers)
    joined.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return joined


def _join_int8(layers: Sequence[Any]) -> nn.Module | None:
    if len({layer.scale.dtype for layer in layers}) > 1:
        return None
    scale_N = torch.cat([layer.scale.detach() for layer in layers])
    return Int8Linear(_move_weights(layers), scale_N, _join_bias(layers))


def _join_int4(layers: Sequence[Any]) -> nn.Module | None:
    """Only where each layer but the last fills its tiles, groups are alike, and inputs are scaled alike."""
    first = layers[0]
    if any(layer.out_features % TILE for layer in layers[:-1]) or len({_grid(layer) for layer in layers}) > 1:
        return None
    scales = [layer.input_scale for layer in layers]
    if any((scale is None) != (scales[0] is None) or (scale is not None and not torch.equal(scale, scales[0])) for scale in scales):
        return None
    scale_zero_GP2 = torch.cat([layer.scale_zero.detach() for layer in layers], dim=1)
    rows = sum(layer.out_features for layer in layers)
    return Int4Linear(_move_weights(layers), scale_zero_GP2, rows, _join_bias(layers), first.input_scale)


def _grid(layer: Int4Linear) -> tuple[int, torch.dtype]:
    return layer.scale_zero.shape[0], layer.scale_zero.dtype


def _move_weights(layers: Sequence[Any]) -> Tensor:
    """The layers' weights along their first dimension; the layers' own become views."""
    joined = torch.cat([layer.weight.detach() for layer in layers])
    for layer, part in zip(layers, joined.split([len(layer.weight) for layer in layers]), strict=True):
        layer.weight.data = part
    return joined


def _join_bias(layers: Sequence[Any]) -> Tensor | None:
    return None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])


_JOINS: dict[type[nn.Module], Callable[[Sequence[Any]], nn.Module | None]] = {
    nn.Linear: _join_linear,
    Int8Linear: _join_int8,
    Int4Linear: _join_int4,
}
