"""Experts of one layer: routed as `salticid.models.moe.router` says, and only those that a token chose are read.

B rows, T tokens, S tokens of either kind, K choices per token, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salticid.engine.decoder.feed_forward import FeedForward, read_activation, read_dense
from salticid.models.moe.experts import visit_experts
from salticid.models.moe.layer import ExpertsLayer
from salticid.models.moe.router import Router
from salticid.quant.expert_products import ExpertProducts, fuse_experts


@dataclass(frozen=True)
class ExpertsFeedForward:
    """A router, experts, and perhaps the dense network beside them: added, or where there is a `coefficient`, blended with them."""

    router: Router
    experts: int
    products: ExpertProducts
    dense: FeedForward | None = None
    coefficient: Any = None

    def prefill(self, x_TD: Tensor) -> Tensor:
        """A whole prompt, which under DeepSpeed's rule shares its experts' room."""
        routing = self.router(x_TD)
        y_TD = self._visit(x_TD, routing.experts_SK, routing.weights_SK)
        return self._beside(x_TD, y_TD, None if self.dense is None else self.dense.prefill)

    def step(self, x_BD: Tensor) -> Tensor:
        """One token of each of several answers, which know nothing of each other: none takes another's room."""
        rows = [x_BD] if self.router.config.routing == "dropless" else x_BD.split(1)
        routings = [self.router(row) for row in rows]
        experts_BK = torch.cat([routing.experts_SK for routing in routings])
        weights_BK = torch.cat([routing.weights_SK for routing in routings])
        y_BD = (self._visit_once if len(x_BD) == 1 else self._visit)(x_BD, experts_BK, weights_BK)
        return self._beside(x_BD, y_BD, None if self.dense is None else self.dense.step)

    def _visit(self, x_SD: Tensor, experts_SK: Tensor, weights_SK: Tensor) -> Tensor:
        return visit_experts(self.products.feed_forward, self.experts, x_SD, experts_SK, weights_SK)

    def _visit_once(self, x_1D: Tensor, experts_1K: Tensor, weights_1K: Tensor) -> Tensor:
        """One token needs no sorting."""
        outputs = [self.products.feed_forward(expert, x_1D) for expert in experts_1K[0].tolist()]
        return (weights_1K @ torch.cat(outputs).to(weights_1K.dtype)).to(x_1D.dtype)

    def _beside(self, x_SD: Tensor, y_SD: Tensor, dense: Callable[[Tensor], Tensor] | None) -> Tensor:
        if dense is None:
            return y_SD
        if self.coefficient is None:
            return y_SD + dense(x_SD)
        share_S2 = self.coefficient(x_SD).softmax(-1)
        return y_SD * share_S2[..., :1] + dense(x_SD) * share_S2[..., 1:]


def read_experts(layer: ExpertsLayer) -> ExpertsFeedForward:
    dense = layer.shared_expert if layer.residual_mlp is None else layer.residual_mlp
    return ExpertsFeedForward(
        router=layer.router,
        experts=int(layer.experts.num_experts),
        products=fuse_experts(layer.experts, read_activation(layer.experts.act_fn)),
        dense=None if dense is None else read_dense(dense),
        coefficient=layer.coefficient,
    )
