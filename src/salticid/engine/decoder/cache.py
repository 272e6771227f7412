"""Keys and values of the tokens so far, in one tensor that is made before it is needed and grows by blocks.

B rows, T new tokens, S tokens so far, C tokens that there is room for, L layers, G key-value heads, K depth of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256


@dataclass(frozen=True)
class CacheShape:
    """What all caches of one decoder have in common."""

    layers: int
    heads: int
    depth: int
    dtype: torch.dtype
    device: torch.device


class Slot(NamedTuple):
    """One layer's part of the cache during one pass: where new keys and values go, and all of them, the new ones included."""

    new_keys: Tensor  # (B, G, T, K)
    new_values: Tensor
    keys: Tensor  # (B, G, S, K)
    values: Tensor


class KeyValueCache:
    """Keys and values of `length` tokens for each row.

    Rows of unequal length end together: `padding` says how many places at the start of each row hold nothing, and `padding_B` says so
    too where there are any.
    """

    def __init__(self, shape: CacheShape, capacity: int, padding: Sequence[int] = (0,)):
        self.shape, self.length = shape, 0
        self._mask_B11C: Tensor | None = None
        self._set_padding(list(padding))
        self._store = torch.empty(
            2 * shape.layers, len(padding), shape.heads, _blocks(capacity), shape.depth, dtype=shape.dtype, device=shape.device
        )

    @property
    def capacity(self) -> int:
        return self._store.shape[3]

    @property
    def nbytes(self) -> int:
        return self._store.nbytes

    def extend(self, tokens: int) -> list[Slot]:
        """Room for as many more tokens in each row; a slot for each layer, which must fill it."""
        start, self.length = self.length, self.length + tokens
        if self.length > self.capacity:
            self._grow()
        new = self._store.narrow(3, start, tokens).unbind()
        whole = self._store.narrow(3, 0, self.length).unbind()
        return list(map(Slot, new[::2], new[1::2], whole[::2], whole[1::2]))

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = length

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows."""
        self._store = self._store.index_select(1, torch.tensor(rows, device=self._store.device))
        self._set_padding([self.padding[row] for row in rows])

    def mask(self) -> Tensor | None:
        """(B, 1, 1, S), added to scores: minus infinity where a row holds nothing. `None` where rows are equally long."""
        if self.padding_B is None:
            return None
        if self._mask_B11C is None or self._mask_B11C.shape[-1] < self.capacity:
            empty_BC = torch.arange(self.capacity, device=self.shape.device) < self.padding_B.unsqueeze(1)
            mask_BC = torch.zeros(empty_BC.shape, dtype=self.shape.dtype, device=self.shape.device).masked_fill_(empty_BC, -torch.inf)
            self._mask_B11C = mask_BC[:, None, None]
        return self._mask_B11C[..., : self.length]

    def _set_padding(self, padding: list[int]) -> None:
        self.padding = padding
        self.padding_B = torch.tensor(padding, device=self.shape.device) if any(padding) else None
        self._mask_B11C = None

    def put(self, row: int, other: KeyValueCache) -> None:
        """Copy a cache of one row here, so that it ends where this one ends."""
        start = self.length - other.length
        self._store[:, row, :, :start] = 0  # what is masked is still multiplied, by zero, and must be finite
        self._store[:, row, :, start : self.length] = other._store[:, 0, :, : other.length]

    def _grow(self) -> None:
        old = self._store
        shape = list(old.shape)
        shape[3] = _blocks(max(self.length, shape[3] + shape[3] // 2))
        self._store = old.new_empty(shape)
        self._store[:, :, :, : old.shape[3]] = old


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK
