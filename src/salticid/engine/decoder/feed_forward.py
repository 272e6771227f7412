"""Feed-forward networks of one layer, dense ones. M rows, D width, F ffn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from salticid.engine.decoder.products import Multiply, read_product, read_products
from salticid.engine.decoder.unplanned import Unplanned
from salticid.models.moe.upcycle import FEED_FORWARDS

Activation = Callable[[Tensor], Tensor]

SILU: Activation = F.silu
GELU_TANH: Activation = partial(F.gelu, approximate="tanh")
# By the name of transformers' class; where it writes a formula out, the one kernel that computes it.
ACTIVATIONS: dict[str, Activation] = {
    "SiLUActivation": SILU,
    "SiLU": SILU,
    "NewGELUActivation": GELU_TANH,
    "GELUTanh": GELU_TANH,
    "GELUActivation": F.gelu,
}


class FeedForward(Protocol):
    """A layer's second half, for the tokens of one prompt, or for one token of each of several rows."""

    def prefill(self, x_TD: Tensor) -> Tensor: ...

    def step(self, x_BD: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class GatedFeedForward:
    """down(act(gate(x)) * up(x)), as Llama has it. `ups`: gate and up, or one product that gives both."""

    ups: Sequence[Multiply]
    down: Multiply
    activation: Activation

    def prefill(self, x_MD: Tensor) -> Tensor:
        gate_MF, up_MF = self.ups[0](x_MD).chunk(2, -1) if len(self.ups) == 1 else (up(x_MD) for up in self.ups)
        return self.down(self.activation(gate_MF) * up_MF)

    step = prefill


@dataclass(frozen=True)
class PlainFeedForward:
    """down(act(up(x))), as Phi has it."""

    up: Multiply
    down: Multiply
    activation: Activation

    def prefill(self, x_MD: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_MD)))

    step = prefill


def read_dense(mlp: nn.Module) -> FeedForward:
    """The network of a decoder layer; raises `Unplanned` where its layers have unknown names."""
    names = frozenset(name for name, child in mlp.named_children() if getattr(child, "weight", None) is not None)
    if names not in FEED_FORWARDS:
        raise Unplanned(f"{type(mlp).__name__} has layers {sorted(names)}")
    ups, down, activation = FEED_FORWARDS[names]
    products = read_products([mlp.get_submodule(name) for name in ups])
    down_product, act = read_product(mlp.get_submodule(down)), read_activation(getattr(mlp, activation))
    if len(ups) == 1:
        return PlainFeedForward(products[0], down_product, act)
    return GatedFeedForward(products, down_product, act)


def read_activation(module: Any) -> Activation:
    return ACTIVATIONS.get(type(module).__name__, module)
