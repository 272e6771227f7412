"""Every way to multiply experts against the plain loop over tokens, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from salticid.models.moe import Experts, FeedForwardShape, experts_reference, route_dropless

KINDS = [(True, False), (True, True), (False, True), (False, False)]


def make(gated: bool, bias: bool, implementation: str, dtype: torch.dtype = torch.float32) -> Experts:
    config = PreTrainedConfig()
    config._experts_implementation = implementation
    # Multiples of 16 bytes in both dtypes: torch's grouped product asks for them.
    shape = FeedForwardShape(width=16, ffn=24, gated=gated, bias=bias, activation=ACT2FN["silu" if gated else "gelu_new"])
    experts = Experts(config, shape, experts=4, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return experts


def inputs(tokens: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, 16, generator=generator).to(dtype).requires_grad_()
    logits = torch.randn(tokens, 4, generator=generator)
    logits[:, 3] = -9  # an expert that no token wants
    routing = route_dropless(logits, 2)
    return x, routing.experts_SK, routing.weights_SK.requires_grad_()


def values_and_gradients(out: Tensor, experts: Experts, x: Tensor, weights: Tensor) -> list[Tensor]:
    probe = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out, *torch.autograd.grad((out.float() * probe).sum(), [x, weights, *experts.parameters()])]


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize(("gated", "bias"), KINDS)
def test_implementations_equal_the_reference(gated: bool, bias: bool, implementation: str) -> None:
    experts = make(gated, bias, implementation)
    x, chosen, weights = inputs()
    expected = values_and_gradients(experts_reference(experts, x, chosen, weights), experts, x, weights)
    got = values_and_gradients(experts(x, chosen, weights), experts, x, weights)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize(("gated", "bias"), [(True, False), (False, True)])
def test_bfloat16_stays_close(gated: bool, bias: bool, implementation: str) -> None:
    experts = make(gated, bias, implementation, torch.bfloat16)
    x, chosen, weights = inputs(dtype=torch.bfloat16)
    out, *gradients = values_and_gradients(experts(x, chosen, weights), experts, x, weights)
    assert out.dtype == torch.bfloat16
    exact = make(gated, bias, "eager")
    exact.load_state_dict({name: tensor.float() for name, tensor in experts.state_dict().items()})
    reference = x.detach().float().requires_grad_()
    expected = values_and_gradients(experts_reference(exact, reference, chosen, weights), exact, reference, weights)
    for ours, theirs in zip([out, *gradients], expected, strict=True):
        assert (ours.float() - theirs).norm() <= 0.02 * theirs.norm()


@pytest.mark.parametrize(("gated", "bias", "names"), [(True, False, {"gate_up_proj", "down_proj"}), (False, True, None)])
def test_parameters_are_named_and_shaped_as_transformers_lays_them_out(gated: bool, bias: bool, names: set[str] | None) -> None:
    names = names or {"up_proj", "up_proj_bias", "down_proj", "down_proj_bias"}
    shapes = {name: tuple(parameter.shape) for name, parameter in make(gated, bias, "eager").named_parameters()}
    rows = 48 if gated else 24
    known = {"gate_up_proj": (4, rows, 16), "up_proj": (4, rows, 16), "up_proj_bias": (4, rows), "down_proj": (4, 16, 24)}
    assert shapes == {name: size for name, size in (known | {"down_proj_bias": (4, 16)}).items() if name in names}


def test_an_expert_is_multiplied_once_by_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = make(True, False, "eager")
    rows: list[int] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr("torch.nn.functional.linear", lambda x, *weights: rows.append(len(x)) or linear(x, *weights))
    chosen = torch.tensor([[0, 2]] * 5 + [[2, 1]])
    experts(torch.randn(6, 16), chosen, torch.full((6, 2), 0.5))
    assert rows == [5, 5, 1, 1, 6, 6]  # up and down of experts 0, 1 and 2; expert 3 is not read
    rows.clear()
    experts(torch.randn(1, 16), torch.tensor([[3, 1]]), torch.full((1, 2), 0.5))
    assert rows == [1, 1, 1, 1]


def test_no_tokens() -> None:
    experts = make(True, False, "eager")
    out = experts(torch.empty(0, 16), torch.empty(0, 2, dtype=torch.long), torch.empty(0, 2))
    assert out.shape == (0, 16)
