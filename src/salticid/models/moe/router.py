"""Which experts a token visits, and how much each of them counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

from salticid.models.moe.config import ExpertsConfig
from salticid.models.moe.losses import load_balancing_loss, router_z_loss

# Suffixes of tensor names: S tokens (batch times length, row-major, padding included), E experts, K chosen experts per token,
# D width, Q places in the queue (K * S: all first choices, then all second ones).


@dataclass(frozen=True)
class Routing:
    """What a router decided for S tokens. The losses and counts are worked out when asked for: a decode step does not pay for them."""

    weights_SK: Tensor  # float32; zero where dropped
    experts_SK: Tensor  # int64, first choice first
    kept_SK: Tensor  # bool; false where the expert had no room
    logits_SE: Tensor  # float32, before noise
    capacity: int | None = None  # tokens that an expert had room for; None when dropless

    @property
    def aux_loss(self) -> Tensor:
        """Load-balancing loss over all tokens, without its coefficient; a scalar."""
        return load_balancing_loss(self.logits_SE, self.experts_SK[:, 0])

    @property
    def z_loss(self) -> Tensor:
        """Router z-loss over all tokens, without its coefficient; a scalar."""
        return router_z_loss(self.logits_SE)

    @property
    def first_choices_E(self) -> Tensor:
        """How many tokens wanted each expert most, before drops (E,)."""
        return self._count(self.experts_SK[:, 0])

    @property
    def chosen_E(self) -> Tensor:
        """How many tokens wanted each expert as any choice, before drops (E,)."""
        return self._count(self.experts_SK)

    @property
    def dropped_E(self) -> Tensor:
        """How many tokens each expert had no room for (E,)."""
        return self._count(self.experts_SK[~self.kept_SK])

    def _count(self, experts: Tensor) -> Tensor:
        return torch.bincount(experts.reshape(-1), minlength=self.logits_SE.shape[-1])


def route_dropless(logits_SE: Tensor, top_k: int, *, normalise: bool = True) -> Routing:
    """Softmax over all experts, the `top_k` most probable of them, weights renormalised over these unless told otherwise.

    With top_k 1 and `normalise` every weight is one, so that only the auxiliary loss trains the router.
    """
    weights_SK, experts_SK = logits_SE.softmax(-1).topk(top_k, dim=-1)
    if normalise:
        weights_SK = weights_SK / weights_SK.sum(-1, keepdim=True)
    return Routing(weights_SK, experts_SK, torch.ones_like(experts_SK, dtype=torch.bool), logits_SE)


def route_deepspeed(
    logits_SE: Tensor, top_k: int, capacity: int, *, gumbel_SE: Tensor | None = None, uniform_SE: Tensor | None = None
) -> Routing:
    """DeepSpeed 0.9.5's `top1gating` (top_k 1) and `top2gating` (top_k 2), `deepspeed/moe/sharded_moe.py`.

    One deviation: with top_k 1 and room for more tokens than there are, upstream fails; here nothing is dropped.

    Args:
        logits_SE: router logits (S, E), float32.
        top_k: 1 or 2.
        capacity: how many tokens an expert has room for; the others are dropped.
        gumbel_SE: noise added to the logits before the second choice (top_k 2); None for none.
        uniform_SE: draws in [0, 1) whose largest win a place at a full expert (top_k 1); None for no random token selection.
    """
    return _DEEPSPEED_RULES[top_k](logits_SE, capacity, gumbel_SE, uniform_SE)


def _route_first_choice(logits_SE: Tensor, capacity: int, _: Tensor | None, uniform_SE: Tensor | None) -> Routing:
    probabilities_SE = logits_SE.softmax(-1)
    experts_SK = probabilities_SE.argmax(-1, keepdim=True)
    claim_SE = F.one_hot(experts_SK[:, 0], logits_SE.shape[-1])
    # Without draws all claims tie, and the winners are whichever topk happens to return: upstream has the same footgun.
    claim_SE = claim_SE if uniform_SE is None else claim_SE * uniform_SE
    winners = claim_SE.topk(min(capacity, len(claim_SE)), dim=0).indices
    admitted_SE = torch.zeros_like(claim_SE, dtype=torch.bool).scatter_(0, winners, True)
    kept_SK = admitted_SE.gather(1, experts_SK)
    weights_SK = probabilities_SE.gather(1, experts_SK) * kept_SK  # the raw probability: this is what trains the router
    return Routing(weights_SK, experts_SK, kept_SK, logits_SE, capacity)


def _route_two_choices(logits_SE: Tensor, capacity: int, gumbel_SE: Tensor | None, _: Tensor | None) -> Routing:
    probabilities_SE = logits_SE.softmax(-1)
    first_S1 = probabilities_SE.argmax(-1, keepdim=True)
    noisy_SE = logits_SE if gumbel_SE is None else logits_SE + gumbel_SE
    second_S1 = noisy_SE.scatter(1, first_S1, -torch.inf).argmax(-1, keepdim=True)
    experts_SK = torch.cat([first_S1, second_S1], dim=1)

    # Everyone queues at their expert: all first choices in token order, then all second ones.
    experts_Q = experts_SK.T.reshape(-1)
    place_Q = F.one_hot(experts_Q, logits_SE.shape[-1]).cumsum(0).gather(1, experts_Q[:, None])
    kept_SK = (place_Q <= capacity).view(2, -1).T

    weights_SK = probabilities_SE.gather(1, experts_SK) * kept_SK
    # The clamp leaves a token that lost both experts with two zeros.
    weights_SK = weights_SK / weights_SK.sum(-1, keepdim=True).clamp(min=torch.finfo(weights_SK.dtype).eps)
    return Routing(weights_SK, experts_SK, kept_SK, logits_SE, capacity)


_DEEPSPEED_RULES = {1: _route_first_choice, 2: _route_two_choices}


def expert_capacity(tokens: int, experts: int, top_k: int, factor: float, min_capacity: int = 0) -> int:
    """`ceil(tokens / experts * top_k * factor)`, not under `min_capacity`.

    The product is rounded to float32 before the ceiling, as upstream's is: 35 tokens, 3 experts and
    a factor of 1.2 make 15 so, where double precision makes 14.
    """
    room = tokens / experts * torch.tensor(factor * top_k, dtype=torch.float32, device="cpu")
    return max(math.ceil(room.item()), min_capacity)


def gumbel_noise(like_SE: Tensor) -> Tensor:
    """Standard Gumbel draws shaped as the argument, the same as `torch.distributions.Gumbel(0, 1)` makes from the same seed."""
    limits = torch.finfo(like_SE.dtype)
    uniform_SE = limits.tiny + torch.rand_like(like_SE) * ((1 - limits.eps) - limits.tiny)
    return -(-uniform_SE.log()).log()


class _Float32Linear(nn.Linear):
    """Multiplies in float32 under autocast and when the model was cast: which expert wins is too sharp a question for 8 bits of it."""

    def forward(self, input: Tensor) -> Tensor:
        with maybe_autocast(device_type=input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float())


class Router(nn.Module):
    """A linear layer without bias, then one of the two rules above, as the configuration says."""

    def __init__(self, config: ExpertsConfig, width: int, experts: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.wg = _Float32Linear(width, experts, bias=False, device=device, dtype=torch.float32)

    def forward(self, x_SD: Tensor, gumbel_SE: Tensor | None = None, uniform_SE: Tensor | None = None) -> Routing:
        """Tokens (S, D) to a Routing. The two draws replace the router's own; both (S, E), see `route_deepspeed`."""
        config, logits_SE = self.config, self.wg(x_SD)
        if config.routing == "dropless":
            return route_dropless(logits_SE, config.top_k, normalise=config.normalise)
        factor = config.capacity_factor if self.training else config.eval_capacity_factor
        tokens, experts = logits_SE.shape
        capacity = expert_capacity(tokens, experts, config.top_k, factor, config.min_capacity)
        if gumbel_SE is None and config.second_choice_noise == "gumbel":
            gumbel_SE = gumbel_noise(logits_SE)
        if uniform_SE is None and config.random_token_selection and config.top_k == 1:
            uniform_SE = torch.rand_like(logits_SE)
        return route_deepspeed(logits_SE, config.top_k, capacity, gumbel_SE=gumbel_SE, uniform_SE=uniform_SE)
