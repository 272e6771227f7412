"""Experts as products: the networks of the layer, one at a time, their weights where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from salticid.errors import ConfigurationError
from salticid.models.moe.experts import Experts, FeedForwardShape
from salticid.quant.expert_products import fuse_experts
from salticid.quant.experts import Int4Experts, Int8Experts
from salticid.quant.int4 import kernel_reads_tiles

pytestmark = pytest.mark.usefixtures("torch_kernels", "exact_float32")

KINDS: dict[str, Callable[[Experts], Any]] = {
    "float": lambda experts: experts,
    "int8": Int8Experts.from_float,
    "int4": lambda experts: Int4Experts.from_float(experts, 32),
    "int4 scaled": lambda experts: Int4Experts.from_float(experts, 32, scaled=True),
}


def build(gated: bool, bias: bool) -> Experts:
    torch.manual_seed(0)
    experts = Experts(LlamaConfig(), FeedForwardShape(width=64, ffn=96, gated=gated, bias=bias, activation=nn.SiLU()), 3)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.1)
    return experts


class Addresses(TorchDispatchMode):
    """Where the inputs of all operations lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {tensor.data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        return function(*args, **(kwargs or {}))


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [1, 200])
@pytest.mark.parametrize(("gated", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_gives_what_its_dequantised_weights_give(
    kind: str, gated: bool, bias: bool, tokens: int, dtype: torch.dtype, tolerance: float
) -> None:
    layer = KINDS[kind](build(gated, bias)).to(dtype)
    if kind == "int4 scaled":
        layer.get_parameter("down_proj_input_scale").data *= torch.tensor([[1], [2], [0.5]]).to(dtype)
    plain = fuse_experts(layer if kind == "float" else layer.to_float(torch.float32))
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    products = fuse_experts(layer)
    for expert in range(3):
        y = products.feed_forward(expert, x)
        assert y.dtype == dtype
        expected = plain.feed_forward(expert, x if kind == "float" else x.float()).float()
        assert (y.float() - expected).norm() < tolerance * expected.norm()


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_one_experts_weights_are_read_where_they_lie(kind: str) -> None:
    if kind.startswith("int4") and not kernel_reads_tiles():
        pytest.skip("this processor's kernel reads weights in an order of its own")
    layer = KINDS[kind](build(True, False)).bfloat16()
    products = fuse_experts(layer)
    with Addresses() as addresses:
        products.feed_forward(1, torch.randn(1, 64).bfloat16())
    for name in ("gate_up_proj", "down_proj"):
        assert [weight.data_ptr() in addresses.seen for weight in layer.get_parameter(name)] == [False, True, False]


@torch.inference_mode()
def test_an_activation_may_take_the_place_of_the_layers_own() -> None:
    layer, x = build(False, True), torch.randn(2, 64)
    own, given, other = (fuse_experts(layer, *rest).feed_forward(0, x) for rest in ((), (nn.functional.silu,), (torch.relu,)))
    torch.testing.assert_close(given, own)
    assert not torch.allclose(other, own)


def test_other_layers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Linear is no layer of experts; known: Experts, Int8Experts, Int4Experts"):
        fuse_experts(nn.Linear(2, 2))
