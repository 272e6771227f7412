"""One decoder layer, with its two residuals one after the other (Llama) or from one place (Phi). M rows, D width."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from salticid.engine.decoder.attention import Attention
from salticid.engine.decoder.cache import Slot
from salticid.engine.decoder.feed_forward import FeedForward
from salticid.engine.decoder.norms import Norm
from salticid.engine.decoder.products import Multiply
from salticid.engine.decoder.rotary import Turn


@dataclass(frozen=True)
class Layer:
    """Hidden states come and go in float32.

    attention_norms: what its output goes through, in order. feed_forward_norm: `None` where both halves read one normalised input.
    """

    input_norm: Norm
    attention: Attention
    attention_norms: tuple[Norm, ...]
    feed_forward_norm: Norm | None
    feed_forward: FeedForward
    output_norm: Norm | None = None

    def prefill(self, x_TD: Tensor, turn: Turn, slot: Slot) -> Tensor:
        """Tokens of one row in order; the input is overwritten."""
        normed_TD = self.input_norm(x_TD)
        return self._add(x_TD, normed_TD, self.attention.prefill(normed_TD, turn, slot), self.feed_forward.prefill)

    def step(self, x_BD: Tensor, turn: Turn, slot: Slot, mask_B11S: Tensor | None) -> Tensor:
        """One token of each row; the input is overwritten."""
        normed_BD = self.input_norm(x_BD)
        return self._add(x_BD, normed_BD, self.attention.step(normed_BD, turn, slot, mask_B11S), self.feed_forward.step)

    def _add(self, x_MD: Tensor, normed_MD: Tensor, attended_MD: Tensor, feed_forward: Multiply) -> Tensor:
        for norm in self.attention_norms:
            attended_MD = norm(attended_MD)
        if self.feed_forward_norm is None:
            return x_MD.add_(attended_MD + feed_forward(normed_MD))
        x_MD.add_(attended_MD)
        y_MD = feed_forward(self.feed_forward_norm(x_MD))
        return x_MD.add_(y_MD if self.output_norm is None else self.output_norm(y_MD))
