"""Experts as products of the engine, of which a call reads one expert's weights.

N tokens of one expert, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from salticid.errors import ConfigurationError
from salticid.models.moe.experts import Experts, activate
from salticid.quant.experts import Int4Experts, Int8Experts
from salticid.quant.kernels import FloatProduct, Product, int4_product, int8_product


class ExpertProducts:
    """The feed-forward networks of one layer, side by side."""

    def __init__(self, ups_E: list[Product], downs_E: list[Product], activation: Any, gated: bool):
        self.ups_E, self.downs_E, self.activation, self.gated = ups_E, downs_E, activation, gated

    def feed_forward(self, expert: int, x_ND: Tensor) -> Tensor:
        """One expert for its tokens: (N, D) -> (N, D)."""
        return self.downs_E[expert](activate(self.ups_E[expert](x_ND), self.activation, self.gated))


def fuse_experts(experts: nn.Module, activation: Callable[[Tensor], Tensor] | None = None) -> ExpertProducts:
    """The networks of a layer of experts, whose weights stay where they are.

    Args:
        activation: a faster form of the layer's own, which is used otherwise.

    Raises:
        ConfigurationError: not `Experts`, `Int8Experts` or `Int4Experts`.
    """
    product = _PRODUCTS.get(type(experts))
    if product is None:
        known = ", ".join(kind.__name__ for kind in _PRODUCTS)
        raise ConfigurationError(f"{type(experts).__name__} is no layer of experts; known: {known}")
    layer: Any = experts
    ups_E, downs_E = ([product(layer, name, expert) for expert in range(layer.num_experts)] for name in (layer.up_name, "down_proj"))
    return ExpertProducts(ups_E, downs_E, layer.act_fn if activation is None else activation, layer.has_gate)


def _float_product(experts: Experts, name: str, expert: int) -> Product:
    return FloatProduct(_own(experts, name, expert), _bias(experts, name, expert))


def _int8_product(experts: Int8Experts, name: str, expert: int) -> Product:
    return int8_product(_own(experts, name, expert), _own(experts, f"{name}_scale", expert), _bias(experts, name, expert))


def _int4_product(experts: Int4Experts, name: str, expert: int) -> Product:
    tensors = _own(experts, name, expert), _own(experts, f"{name}_scale_zero", expert), experts.rows[name], _bias(experts, name, expert)
    input_scale = _own(experts, f"{name}_input_scale", expert) if experts.scaled else None
    return int4_product(*tensors, input_scale, partial(experts.kernel_weight, name, expert))


def _own(experts: nn.Module, name: str, expert: int) -> Tensor:
    return experts.get_parameter(name).detach()[expert]


def _bias(experts: Any, name: str, expert: int) -> Tensor | None:
    return _own(experts, f"{name}_bias", expert) if experts.has_bias else None


_PRODUCTS: dict[type[nn.Module], Callable[[Any, str, int], Product]] = {
    Experts: _float_product,
    Int8Experts: _int8_product,
    Int4Experts: _int4_product,
}
