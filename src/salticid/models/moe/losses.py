"""Losses that keep experts in use and router logits small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from salticid.errors import ConfigurationError
from salticid.models.moe.config import ExpertsConfig

if TYPE_CHECKING:
    from salticid.models.moe.router import Routing

# Suffixes of tensor names: S tokens (batch times length, row-major), E experts.


def load_balancing_loss(logits_SE: Tensor, first_choice_S: Tensor, mask_S: Tensor | None = None) -> Tensor:
    """`E * sum(mean(p) * mean(top-1))` over experts: 1 when the load is even, E when all tokens want one expert.

    GShard (arXiv 2006.16668, algorithm 1) and Switch Transformer (arXiv 2101.03961, equation 4); DeepSpeed counts padding, which is
    what happens here without a mask.

    Args:
        logits_SE: router logits (S, E).
        first_choice_S: index of each token's first expert (S,).
        mask_S: true where a token counts (S,).

    Returns:
        A scalar; gradients flow through the probabilities only.
    """
    experts = logits_SE.shape[-1]
    if mask_S is not None:
        logits_SE, first_choice_S = logits_SE[mask_S.bool()], first_choice_S[mask_S.bool()]
    wanted_SE = F.one_hot(first_choice_S, experts)
    return experts * (logits_SE.softmax(-1).mean(0) * wanted_SE.to(logits_SE.dtype).mean(0)).sum()


def router_z_loss(logits_SE: Tensor, mask_S: Tensor | None = None) -> Tensor:
    """Mean square of `logsumexp(logits)` (ST-MoE, arXiv 2202.08906, equation 5); arguments as above. Returns a scalar."""
    if mask_S is not None:
        logits_SE = logits_SE[mask_S.bool()]
    return logits_SE.logsumexp(-1).square().mean()


def experts_loss(routings: Sequence[Routing], config: ExpertsConfig, mask_S: Tensor | None = None) -> Tensor:
    """What all expert layers add to the training loss, coefficients applied.

    Args:
        routings: one per expert layer, as `collect_routing` returns them.
        config: holds `aux_loss_coef` and `z_loss_coef`.
        mask_S: true where a token counts (batch times length,); None counts all, as upstream does.

    Returns:
        A float32 scalar on the device of the first layer.

    Raises:
        ConfigurationError: no layer was recorded.
    """
    if not routings:
        raise ConfigurationError("No expert layer has run, so there is no router loss; run the language model first.")
    total = routings[0].logits_SE.new_zeros(())
    for routing in routings:
        mask = None if mask_S is None else mask_S.to(routing.logits_SE.device)
        loss = config.aux_loss_coef * load_balancing_loss(routing.logits_SE, routing.experts_SK[:, 0], mask)
        if config.z_loss_coef:
            loss = loss + config.z_loss_coef * router_z_loss(routing.logits_SE, mask)
        total = total + loss.to(total.device)
    return total
