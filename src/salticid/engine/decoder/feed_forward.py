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
from salticid.quant import native
from salticid.quant.native.step import GELU_TANH as GELU_TANH_KIND
from salticid.quant.native.step import SILU as SILU_KIND


class Activation:
    """What stands between the products; by our own kernel, of that `kind`, where it has one and serves."""

    def __init__(self, plain: Callable[[Tensor], Tensor], kind: int | None = None):
        self._plain, self.kind = plain, kind

    def __call__(self, x_MF: Tensor, up_MF: Tensor | None = None) -> Tensor:
        """Times `up_MF`, where it is given."""
        if self.kind is not None and native.activates(x_MF):
            return native.activate(x_MF, self.kind, up_MF)
        y_MF = self._plain(x_MF)
        return y_MF if up_MF is None else y_MF * up_MF


SILU = Activation(F.silu, SILU_KIND)
GELU_TANH = Activation(partial(F.gelu, approximate="tanh"), GELU_TANH_KIND)
# By the name of transformers' class; where it writes a formula out, the one kernel that computes it.
ACTIVATIONS = {
    "SiLUActivation": SILU,
    "SiLU": SILU,
    "NewGELUActivation": GELU_TANH,
    "GELUTanh": GELU_TANH,
    "GELUActivation": Activation(F.gelu),
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
        return self.down(self.activation(gate_MF, up_MF))

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
    return ACTIVATIONS.get(type(module).__name__) or Activation(module)
