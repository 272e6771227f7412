"""Experts with small weights: as the rounded float ones, reading only those that were chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from salticid.models.moe.experts import Experts, FeedForwardShape
from salticid.quant import int4
from salticid.quant.experts import Int4Experts, Int8Experts

pytestmark = pytest.mark.usefixtures("torch_kernels")

KINDS: dict[str, Any] = {"int8": Int8Experts.from_float, "int4": lambda experts: Int4Experts.from_float(experts, 32, scaled=True)}


def build(gated: bool, bias: bool) -> Experts:
    torch.manual_seed(0)
    config = LlamaConfig()
    config._experts_implementation = "eager"
    shape = FeedForwardShape(width=64, ffn=96, gated=gated, bias=bias, activation=nn.SiLU())
    experts = Experts(config, shape, 4)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.1)
    return experts


def choose(tokens: int, experts: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, 64, generator=generator)
    allowed = torch.tensor(experts)
    index = torch.stack([allowed[torch.randperm(len(experts), generator=generator)[:2]] for _ in range(tokens)])
    return x, index, torch.rand(tokens, 2, generator=generator)


class Addresses(TorchDispatchMode):
    """Where the inputs of all products lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in args:
            if isinstance(tensor, torch.Tensor) and not function.is_view:
                self.seen.append((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("gated", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_they_compute_what_float_experts_with_their_weights_do(kind: str, gated: bool, bias: bool, dtype: torch.dtype) -> None:
    original = build(gated, bias)
    small = KINDS[kind](original).to(dtype)
    x, index, weights = choose(9)
    rounded = small.to_float(torch.float32)
    y = small(x.to(dtype), index, weights)
    assert y.dtype == dtype
    expected = rounded(x, index, weights)
    assert (y.float() - expected).norm() < (1e-5 if dtype == torch.float32 else 2e-2) * expected.norm()
    before = original(x, index, weights)
    assert 1e-3 * before.norm() < (expected - before).norm() < (0.02 if kind == "int8" else 0.2) * before.norm()


@pytest.mark.parametrize("tokens", [1, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_only_chosen_experts_are_read(kind: str, tokens: int) -> None:
    small = KINDS[kind](build(True, False)).to(torch.bfloat16)
    x, index, weights = choose(tokens, experts=(0, 2))
    with Addresses() as addresses:
        small(x.bfloat16(), index, weights)
    for name in ("gate_up_proj", "down_proj"):
        for expert, weight in enumerate(small.get_parameter(name)):
            first, last = weight.data_ptr(), weight.data_ptr() + weight.nbytes
            read = any(start < last and first < end for start, end in addresses.seen)
            assert read == (expert in (0, 2)), (name, expert)


def test_input_scales_are_each_experts_own() -> None:
    small = KINDS["int4"](build(True, False))
    x, _, weights = choose(3)
    before, after = ([], [])
    for outputs, scale in ((before, 1), (after, 2)):
        small.gate_up_proj_input_scale.data[2] *= scale
        small.down_proj_input_scale.data[2] /= scale
        outputs += [small(x, torch.full((3, 1), expert), weights[:, :1]) for expert in range(4)]
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_kernel_with_another_order_gets_chosen_experts_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    small = KINDS["int4"](build(True, False)).to(torch.bfloat16)
    x, index, weights = choose(1, experts=(1, 3))
    expected = small(x.bfloat16(), index, weights)
    monkeypatch.setattr(int4, "kernel_reads_tiles", lambda: False)
    assert torch.equal(small(x.bfloat16(), index, weights), expected)
    assert {expert for _, expert in small._in_kernel_order} == {1, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_what_comes_before(kind: str) -> None:
    small = KINDS[kind](build(True, False))
    x, index, weights = choose(3)
    twin = small.to_float(torch.float32)
    gradients = []
    for experts in (small, twin):
        inputs = x.clone().requires_grad_()
        experts(inputs, index, weights).sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients)
