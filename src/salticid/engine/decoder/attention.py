"""Attention of one layer: a prompt reads its own tokens and those before, a step reads the cache.

B rows, T tokens, S tokens so far, M = B * T, H query heads, G key-value heads, N = H / G, K depth of a head, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salticid.engine.decoder.attend import attend_causally, attend_once
from salticid.engine.decoder.cache import Slot
from salticid.engine.decoder.norms import Norm
from salticid.engine.decoder.products import Multiply
from salticid.engine.decoder.rotary import Turn, rotate
from salticid.quant import native


@dataclass(frozen=True)
class Attention:
    """What a layer's attention computes with.

    project: (M, D) -> queries, keys and values of all heads, one after the other. query_norm, key_norm: over each head, before it is
    turned. softcap: Gemma 2's bound on the scores. window: a token sees this many, itself included; `None` for all.
    """

    project: Multiply
    output: Multiply
    heads: int
    groups: int
    depth: int
    scale: float
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    softcap: float | None = None
    window: int | None = None

    def prefill(self, x_TD: Tensor, turn: Turn, slot: Slot) -> Tensor:
        """Tokens of one row in order: (T, D) -> (T, D)."""
        q_THK, k_TGK, v_TGK = self._heads(x_TD, turn)
        slot.new_keys.copy_(k_TGK.transpose(0, 1))
        slot.new_values.copy_(v_TGK.transpose(0, 1))
        q_1HTK = q_THK.transpose(0, 1).unsqueeze(0)
        keys, values = slot.keys, slot.values
        if keys.stride(2) == 1 and keys.dtype == torch.bfloat16 and native.available():
            y_THK = native.attend_prompt(q_THK, keys[0], values[0], self.scale, self.softcap, self.window)
            return self.output(y_THK.flatten(1))
        y_1HTK = attend_causally(q_1HTK, keys, values, self.scale, self.softcap, self.window)
        return self.output(y_1HTK.squeeze(0).transpose(0, 1).reshape(len(x_TD), -1))

    def step(self, x_BD: Tensor, turn: Turn, slot: Slot, mask_B11S: Tensor | None) -> Tensor:
        """One token of each row: (B, D) -> (B, D)."""
        q_BHK, k_BGK, v_BGK = self._heads(x_BD, turn)
        slot.new_keys.squeeze(2).copy_(k_BGK)
        slot.new_values.squeeze(2).copy_(v_BGK)
        keys, values = slot.keys, slot.values
        if self.window is not None and keys.shape[2] > self.window:
            keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
            mask_B11S = None if mask_B11S is None else mask_B11S[..., -self.window :]
        # Query heads that share a key-value head stand as that head's tokens, so that nothing is repeated.
        q_BGNK = q_BHK.view(len(x_BD), self.groups, -1, self.depth)
        y_BGNK = attend_once(q_BGNK, keys, values, mask_B11S, self.scale, self.softcap)
        return self.output(y_BGNK.reshape(len(x_BD), -1))

    def _heads(self, x_MD: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (M, H, K), keys and values (M, G, K), normalised and turned."""
        heads = self.project(x_MD).view(len(x_MD), -1, self.depth)
        turned = self.heads + self.groups
        qk = heads.narrow(1, 0, turned)
        if self.query_norm is not None and self.key_norm is not None:
            qk = torch.cat([self.query_norm(qk[:, : self.heads]), self.key_norm(qk[:, self.heads :])], 1)
        qk = rotate(qk, turn)
        return qk.narrow(1, 0, self.heads), qk.narrow(1, self.heads, self.groups), heads.narrow(1, turned, self.groups)
