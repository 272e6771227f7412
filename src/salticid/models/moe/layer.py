"""The expert layer: it takes the place of a decoder layer's `mlp`, tensor in and tensor out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from salticid.errors import ConfigurationError
from salticid.models.moe.config import ExpertsConfig
from salticid.models.moe.experts import Experts, FeedForwardShape
from salticid.models.moe.router import Router, Routing


class ExpertsLayer(nn.Module):
    """A router, experts, and beside them, if the configuration says so, the dense network for every token.

    A decoder layer wants one tensor from its `mlp`, so what the router decided stays here until `collect_routing` takes it. It is
    no buffer: it is neither saved nor copied with the layer.

    Args:
        config: the expert options.
        host_config: configuration of the model that holds the layer; its `_experts_implementation` chooses how experts multiply.
        shape: of each expert.
        experts: how many this layer has.
        dense: the network that the experts stand for; kept as `residual_mlp` or `shared_expert` where the options ask for one.
        device, dtype: of the experts; the router is float32.
    """

    def __init__(
        self,
        config: ExpertsConfig,
        host_config: PreTrainedConfig,
        shape: FeedForwardShape,
        experts: int,
        dense: nn.Module | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (config.residual or config.shared_expert) and dense is None:
            raise ConfigurationError("residual and shared_expert need the dense network beside the experts; pass it as `dense`.")
        self.router = Router(config, shape.width, experts, device)
        self.experts = Experts(host_config, shape, experts, device, dtype)
        self.shared_expert = dense if config.shared_expert else None
        self.residual_mlp = dense if config.residual else None
        self.coefficient = nn.Linear(shape.width, 2, device=device, dtype=dtype) if config.residual else None
        self._routing: Routing | None = None

    def forward(self, hidden_states: Tensor, *, gumbel_SE: Tensor | None = None, uniform_SE: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) to the same shape. The two draws replace the router's own, see `route_deepspeed`."""
        x_SD = hidden_states.reshape(-1, hidden_states.shape[-1])
        routing = self.router(x_SD, gumbel_SE, uniform_SE)
        self._record(routing)
        out = self.experts(x_SD, routing.experts_SK, routing.weights_SK).view_as(hidden_states)
        if self.shared_expert is not None:
            out = out + self.shared_expert(hidden_states)
        if self.residual_mlp is not None and self.coefficient is not None:
            share_BT2 = self.coefficient(hidden_states).softmax(-1)
            out = out * share_BT2[..., :1] + self.residual_mlp(hidden_states) * share_BT2[..., 1:]
        return out

    def _record(self, routing: Routing) -> None:
        # Gradient checkpointing runs the layer again inside the backward pass. That run must not be taken for a new result, nor keep
        # its graph alive. Under torch.compile the recomputation is part of the graph and never comes here.
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self._routing = routing

    def take_routing(self) -> Routing | None:
        """What the router decided in the last forward pass, once; None afterwards or before any."""
        routing, self._routing = self._routing, None
        return routing

    def __getstate__(self) -> dict[str, Any]:
        # Tensors inside a graph can be neither copied nor pickled.
        return self.__dict__ | {"_routing": None}


def collect_routing(model: nn.Module) -> tuple[Routing, ...]:
    """Takes the last routing of every expert layer of `model`, in layer order, and clears it; call it after each forward pass.

    Gradients flow through `Routing.aux_loss` and `weights_SK` into the routers, also under gradient checkpointing with
    `use_reentrant=False`, transformers' default.

    Raises:
        ConfigurationError: a trainable router ran without gradients, as it does under reentrant gradient checkpointing, where the
            router loss would silently train nothing.
    """
    routings = []
    for layer in model.modules():
        if isinstance(layer, ExpertsLayer) and (routing := layer.take_routing()) is not None:
            trains = layer.training and layer.router.wg.weight.requires_grad and torch.is_grad_enabled()
            if trains and not routing.logits_SE.requires_grad:
                raise ConfigurationError(
                    "Routers ran without gradients, so their loss would train nothing: use gradient checkpointing with "
                    "use_reentrant=False, or collect inside torch.no_grad()."
                )
            routings.append(routing)
    return tuple(routings)
