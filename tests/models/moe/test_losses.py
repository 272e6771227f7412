"""Router losses against their definitions."""

from __future__ import annotations

import pytest
import torch

from salticid.errors import ConfigurationError
from salticid.models.moe import ExpertsConfig, experts_loss, load_balancing_loss, route_dropless, router_z_loss


def test_load_balancing_loss_is_one_when_even_and_the_number_of_experts_when_collapsed() -> None:
    even = torch.eye(4).repeat(3, 1) * 50
    assert load_balancing_loss(even, even.argmax(-1)).item() == pytest.approx(1)
    collapsed = torch.tensor([50.0, 0, 0, 0]).expand(12, 4)
    assert load_balancing_loss(collapsed, collapsed.argmax(-1)).item() == pytest.approx(4)


def test_losses_follow_their_formulas() -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    share = [sum(row.argmax().item() == expert for row in logits) / 9 for expert in range(4)]
    mean = [sum(row.softmax(0)[expert].item() for row in logits) / 9 for expert in range(4)]
    expected = 4 * sum(p * f for p, f in zip(mean, share, strict=True))
    assert load_balancing_loss(logits, logits.argmax(-1)).item() == pytest.approx(expected, rel=1e-6)
    assert router_z_loss(logits).item() == pytest.approx(sum(row.exp().sum().log().item() ** 2 for row in logits) / 9, rel=1e-6)


def test_masked_tokens_do_not_count() -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < 6
    torch.testing.assert_close(load_balancing_loss(logits, logits.argmax(-1), mask), load_balancing_loss(logits[:6], logits[:6].argmax(-1)))
    torch.testing.assert_close(router_z_loss(logits, mask), router_z_loss(logits[:6]))


def test_experts_loss_adds_layers_with_coefficients() -> None:
    generator = torch.Generator().manual_seed(0)
    routings = [route_dropless(torch.randn(5, 4, generator=generator, requires_grad=True), 2) for _ in range(3)]
    config = ExpertsConfig(aux_loss_coef=0.02, z_loss_coef=0.003)
    expected = sum(0.02 * routing.aux_loss + 0.003 * routing.z_loss for routing in routings)
    loss = experts_loss(routings, config)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(routing.logits_SE.grad is not None and routing.logits_SE.grad.abs().sum() > 0 for routing in routings)


def test_experts_loss_without_layers_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="No expert layer has run"):
        experts_loss([], ExpertsConfig())
