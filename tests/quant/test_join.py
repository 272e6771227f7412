"""Joined layers: one tensor, of which the layers keep views with their own values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from salticid.quant.int4 import Int4Linear
from salticid.quant.int8 import Int8Linear
from salticid.quant.join import join

KINDS: dict[str, Any] = {
    "float": lambda linear: linear,
    "int8": Int8Linear.from_float,
    "int4": lambda linear: Int4Linear.from_float(linear, 32),
}


def layers(kind: str, *rows: int, bias: bool = True) -> list[Any]:
    torch.manual_seed(0)
    return [KINDS[kind](nn.Linear(64, count, bias=bias)) for count in rows]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_keep_their_values_in_the_joined_tensor(kind: str, bias: bool) -> None:
    parts = layers(kind, 64, 128, 70, bias=bias)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    joined: Any = join(parts)
    assert joined.out_features == 262
    assert type(joined) is type(parts[0])
    for part, state in zip(parts, before, strict=True):
        assert part.weight.untyped_storage().data_ptr() == joined.weight.untyped_storage().data_ptr()
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
    assert not joined.weight.requires_grad


def test_layers_of_other_dtypes_widths_or_scales_are_not_joined() -> None:
    first, second = layers("float", 64, 64)
    assert join([first, second.bfloat16()]) is None
    assert join([first, nn.Linear(32, 64)]) is None
    eight = layers("int8", 64, 64)
    eight[1].scale.data = eight[1].scale.data.bfloat16()
    assert join(eight) is None
    assert join([nn.Embedding(4, 4), nn.Embedding(4, 4)]) is None
