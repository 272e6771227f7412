"""The experts of one layer: feed-forward networks side by side in three-dimensional parameters, as transformers lays them out.

`config._experts_implementation` of the model that holds them chooses how they are multiplied, on any device:

* "eager": the loop below over the experts that were hit. A decode step reads their weights alone; a long prompt multiplies each
  expert once by all of its tokens.
* "grouped_mm": transformers' call of torch's grouped matrix product; reads hit experts only, no loop, compiles.
* "batched_mm": transformers' gather of one expert copy per token and choice; for decoding on a GPU, far too large for prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.integrations.moe import use_experts_implementation

# Suffixes of tensor names: S tokens, K chosen experts per token, P pairs of token and expert (S * K), N tokens of one expert,
# E experts, D width, F ffn.


@dataclass(frozen=True)
class FeedForwardShape:
    """What all experts of a layer share with the dense feed-forward network that they stand for."""

    width: int
    ffn: int
    gated: bool  # down(act(gate(x)) * up(x)), as Llama has it; else down(act(up(x))), as Phi has it
    bias: bool
    activation: nn.Module


def visit_experts(
    feed_forward: Callable[[int, Tensor], Tensor], experts: int, x_SD: Tensor, experts_SK: Tensor, weights_SK: Tensor
) -> Tensor:
    """Weighted sum (S, D) of `feed_forward(expert, x_ND)` over each token's choices; experts that nobody chose are not called.

    Added up in float32 or better, given back in the dtype of the tokens.
    """
    experts_P = experts_SK.reshape(-1)
    order_P = experts_P.argsort(stable=True)
    tokens_P = order_P // experts_SK.shape[-1]
    weights_P1 = weights_SK.reshape(-1, 1)[order_P]
    counts_E = torch.bincount(experts_P, minlength=experts).tolist()

    out_SD = torch.zeros_like(x_SD, dtype=torch.promote_types(x_SD.dtype, weights_SK.dtype))
    for expert, (tokens_N, weights_N1) in enumerate(zip(tokens_P.split(counts_E), weights_P1.split(counts_E), strict=True)):
        if len(tokens_N):
            out_SD.index_add_(0, tokens_N, (feed_forward(expert, x_SD[tokens_N]) * weights_N1).to(out_SD.dtype))
    return out_SD.to(x_SD.dtype)


def activate(up_NF: Tensor, activation: nn.Module, gated: bool) -> Tensor:
    """What stands between the two products of a feed-forward network; gate rows come first."""
    if not gated:
        return activation(up_NF)
    gate_NF, up_NF = up_NF.chunk(2, dim=-1)
    return activation(gate_NF) * up_NF


@use_experts_implementation
class _ExpertsLoop(nn.Module):
    """Parameters named and shaped as transformers' expert functions expect them, and its "eager" implementation."""

    def __init__(
        self,
        config: PreTrainedConfig,
        shape: FeedForwardShape,
        experts: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = experts
        self.act_fn = shape.activation
        self.up_name = "gate_up_proj" if shape.gated else "up_proj"
        rows = 2 * shape.ffn if shape.gated else shape.ffn
        shapes: dict[str, tuple[int, ...]] = {self.up_name: (experts, rows, shape.width), "down_proj": (experts, shape.width, shape.ffn)}
        if shape.bias:
            shapes |= {f"{self.up_name}_bias": (experts, rows), "down_proj_bias": (experts, shape.width)}
        for name, size in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts' outputs.

        Args:
            hidden_states: tokens (S, D).
            top_k_index: expert of each choice (S, K).
            top_k_weights: weight of each choice (S, K), float32.

        Returns:
            (S, D), in the dtype of the tokens; added up in float32 or better.
        """
        # Unbound once: an index per expert would cost a gradient as large as all experts together, each time.
        ups_E, downs_E = self._unbind(self.up_name), self._unbind("down_proj")

        def feed_forward(expert: int, x_ND: Tensor) -> Tensor:
            return F.linear(self._activate(F.linear(x_ND, *ups_E[expert])), *downs_E[expert])

        return visit_experts(feed_forward, self.num_experts, hidden_states, top_k_index, top_k_weights)

    def _unbind(self, name: str) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of each expert."""
        weights_E = getattr(self, name).unbind()
        bias = getattr(self, f"{name}_bias", None)
        return list(zip(weights_E, [None] * self.num_experts if bias is None else bias.unbind(), strict=True))

    def _activate(self, up_NF: Tensor) -> Tensor:
        return activate(up_NF, self.act_fn, bool(self.has_gate))


class Experts(_ExpertsLoop):
    """`num_experts` feed-forward networks; `forward(tokens, indices, weights)` as the loop documents it.

    Parameters: `gate_up_proj` (E, 2F, D), gate rows first, or `up_proj` (E, F, D) without a gate, and `down_proj` (E, D, F); with
    biases also `gate_up_proj_bias` (E, 2F) or `up_proj_bias` (E, F), and `down_proj_bias` (E, D).

    Args:
        config: of the model that holds the layer; read for `_experts_implementation` at every call.
        shape: sizes and activation.
        experts: how many.
        device, dtype: of the parameters, which start uninitialised.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        shape: FeedForwardShape,
        experts: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, shape, experts, device, dtype)
        # The decorator fixes these per class; here they follow the dense network.
        self.has_gate, self.has_bias = shape.gated, shape.bias


def experts_reference(experts: Experts, x_SD: Tensor, experts_SK: Tensor, weights_SK: Tensor) -> Tensor:
    """What `Experts` computes, token by token and choice by choice; the plain twin that tests compare every implementation with."""
    rows = []
    for x_D, experts_K, weights_K in zip(x_SD, experts_SK.tolist(), weights_SK, strict=True):
        y_D = torch.zeros_like(x_D)
        for expert, weight in zip(experts_K, weights_K, strict=True):
            own = {name: parameter[expert] for name, parameter in experts.named_parameters()}
            if experts.has_gate:
                gate_up_F = F.linear(x_D, own["gate_up_proj"], own.get("gate_up_proj_bias"))
                gate_F, up_F = gate_up_F.chunk(2)
                hidden_F = experts.act_fn(gate_F) * up_F
            else:
                hidden_F = experts.act_fn(F.linear(x_D, own["up_proj"], own.get("up_proj_bias")))
            y_D = y_D + weight * F.linear(hidden_F, own["down_proj"], own.get("down_proj_bias"))
        rows.append(y_D)
    return torch.stack(rows).to(x_SD.dtype)
