"""Keys and values of the tokens so far, in two tensors that are made before they are needed and grow by blocks.

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
    """What all caches of one decoder have in common. keys_by_channel: keys are stored as (B, G, K, C), see `attend.reads_channels`."""

    layers: int
    heads: int
    depth: int
    dtype: torch.dtype
    device: torch.device
    keys_by_channel: bool = False


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
        self._keys, self._values = self._make(len(padding), _blocks(capacity))

    @property
    def capacity(self) -> int:
        return self._keys.shape[3]

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def extend_whole(self) -> tuple[Tensor, Tensor]:
        """Room for one more token of a single row, in the stores of all layers, (L, G, C, K); keys and values must be filled in."""
        self._extend(1)
        return self._keys[:, 0], self._values[:, 0]

    def extend(self, tokens: int) -> list[Slot]:
        """Room for as many more tokens in each row; a slot for each layer, which must fill it."""
        start = self._extend(tokens)
        new, whole = ([store.narrow(3, *span).unbind() for store in self._both] for span in ((start, tokens), (0, self.length)))
        return list(map(Slot, *new, *whole))

    def _extend(self, tokens: int) -> int:
        """The length before."""
        start, self.length = self.length, self.length + tokens
        if self.length > self.capacity:
            self._grow()
        return start

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = length

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows."""
        chosen = torch.tensor(rows, device=self.shape.device)
        self._take(self._keys.index_select(1, chosen), self._values.index_select(1, chosen), self.capacity)
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
        for store, others in zip(self._both, other._both, strict=True):
            store[:, row, :, :start] = 0  # what is masked is still multiplied, by zero, and must be finite
            store[:, row, :, start : self.length] = others[:, 0, :, : other.length]

    def copy(self, row: int, other: int) -> None:
        """Give row `other`, of the same length, what `row` holds."""
        for store in self._both:
            store[:, other] = store[:, row]

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self._keys, self._values

    def _grow(self) -> None:
        self._take(self._keys, self._values, _blocks(max(self.length, self.capacity + self.capacity // 2)))

    def _take(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        self._keys, self._values = self._make(keys.shape[1], capacity)
        for store, old in zip(self._both, (keys, values), strict=True):
            store[:, :, :, : old.shape[3]] = old

    def _make(self, rows: int, capacity: int) -> tuple[Tensor, Tensor]:
        """Both stores, (L, B, G, C, K), whatever lies in them."""
        shape = self.shape
        outer = (shape.layers, rows, shape.heads)
        keys, values = (
            torch.empty(*outer, *inner, dtype=shape.dtype, device=shape.device)
            for inner in ((shape.depth, capacity) if shape.keys_by_channel else (capacity, shape.depth), (capacity, shape.depth))
        )
        return (keys.transpose(3, 4) if shape.keys_by_channel else keys), values


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK
