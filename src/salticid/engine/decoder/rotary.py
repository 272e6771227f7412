"""Rotary position embeddings (arXiv 2104.09864), worked out once for all positions.

P positions, M rows, H heads, K depth of a head, R its first channels, which are turned (all of them, or a part as in Phi and StableLM).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 1024


class Turn(NamedTuple):
    """Cosine and sine of each row's position, (M, 1, R); the sine of the first half has its sign changed, see `rotate`."""

    cos: Tensor
    sin: Tensor


class RotaryTable:
    """The cosines and sines that a rotary module of transformers gives, kept; it must give the same for a position every time.

    The table grows by blocks, so that a short question does not pay for a long context.
    """

    def __init__(self, module: Any, dtype: torch.dtype, device: torch.device):
        self._module, self._like = module, torch.empty(0, dtype=dtype, device=device)
        self._table = self._compute(BLOCK)

    def span(self, start: int, count: int) -> Turn:
        """Of `count` positions in a row."""
        cos_P1R, sin_P1R = self._reach(start + count)
        return Turn(cos_P1R.narrow(0, start, count), sin_P1R.narrow(0, start, count))

    def at(self, positions_M: Tensor, end: int) -> Turn:
        """Of these positions, all below `end`."""
        cos_P1R, sin_P1R = self._reach(end)
        return Turn(cos_P1R.index_select(0, positions_M), sin_P1R.index_select(0, positions_M))

    def _reach(self, end: int) -> Turn:
        if end > len(self._table.cos):
            self._table = self._compute(-(-end // BLOCK) * BLOCK)
        return self._table

    def _compute(self, positions: int) -> Turn:
        places = torch.arange(positions, device=self._like.device).unsqueeze(0)
        cos_1PR, sin_1PR = self._module(self._like, places)
        sin_1PR = sin_1PR.clone()
        sin_1PR[..., : sin_1PR.shape[-1] // 2].neg_()
        return Turn(cos_1PR.transpose(0, 1).contiguous(), sin_1PR.transpose(0, 1).contiguous())


def rotate(x_MHK: Tensor, turn: Turn) -> Tensor:
    """x * cos + (-x2, x1) * sin, for x = (x1, x2); the table's sine holds the sign, so that the halves need only change places."""
    width = turn.cos.shape[-1]
    if width == x_MHK.shape[-1]:
        return torch.addcmul(x_MHK * turn.cos, x_MHK.roll(width // 2, -1), turn.sin)
    turned_MHR = x_MHK[..., :width]
    turned_MHR = torch.addcmul(turned_MHR * turn.cos, turned_MHR.roll(width // 2, -1), turn.sin)
    return torch.cat([turned_MHR, x_MHK[..., width:]], -1)
