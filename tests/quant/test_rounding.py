"""Rounding that looks at the inputs loses less on them than rounding to the nearest."""

from __future__ import annotations

import pytest
import torch

from salticid.quant.int4 import choose_grid, unpack
from salticid.quant.rounding import SOLVERS, InputStatistics, RoundingOptions, gptq, output_error, round_nearest

GENERATOR = torch.Generator()


def correlated(rows: int, width: int, loud: float = 1.0) -> torch.Tensor:
    """Inputs that live near a few directions; a few channels are `loud` times as large."""
    GENERATOR.manual_seed(0)
    directions = torch.randn(width // 4, width, generator=GENERATOR)
    x = torch.randn(rows, width // 4, generator=GENERATOR) @ directions + 0.1 * torch.randn(rows, width, generator=GENERATOR)
    x[:, ::16] *= loud
    return x


def statistics(x: torch.Tensor) -> InputStatistics:
    inputs = InputStatistics(x.shape[1], with_products=True)
    for sample in x.split(32):
        inputs.add(sample[None])
    return inputs


def weight(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(7)) * 0.1


@pytest.mark.parametrize(("method", "loud", "share"), [("gptq", 1.0, 0.75), ("awq", 30.0, 0.75)])
@pytest.mark.parametrize("group", [32, 128])
def test_outputs_are_closer_than_to_the_nearest(method: str, loud: float, share: float, group: int) -> None:
    x, w = correlated(512, 256, loud), weight(48, 256)
    nearest = round_nearest(w, group)
    chosen = SOLVERS[method](w, statistics(x), group, RoundingOptions())
    unseen = correlated(1024, 256, loud)[512:]
    for inputs in (x, unseen):
        assert output_error(w, chosen, inputs) < share * output_error(w, nearest, inputs)


def gptq_twin(w: torch.Tensor, products: torch.Tensor, group: int) -> torch.Tensor:
    """Column by column without blocks or factors, in float64: the inverse of what is left is worked out anew each time."""
    grid = choose_grid(w, group).double()
    order = products.diagonal().argsort(descending=True)
    damped = products.double() + 0.01 * products.diagonal().mean() * torch.eye(len(products))
    left, codes = w.double().clone(), torch.zeros(w.shape, dtype=torch.uint8)
    for step, column in enumerate(order.tolist()):
        rest = order[step:]
        inverse = damped[rest][:, rest].inverse()
        scale, zero = grid[column // group, : len(w)].unbind(-1)
        codes[:, column] = ((left[:, column] - zero) / scale).round().add(8).clamp(0, 15)
        error = left[:, column] - (codes[:, column] - 8.0) * scale - zero
        left[:, rest] -= error[:, None] * inverse[0] / inverse[0, 0]
    return codes


def test_gptq_is_its_plain_twin_across_blocks() -> None:
    x, w = correlated(512, 256), weight(20, 256)
    small = gptq(w, statistics(x), 64, RoundingOptions())
    same = unpack(small["weight"])[:20] == gptq_twin(w, statistics(x).products_KK, 64)
    assert same.float().mean() > 0.98  # a code that lies between two may fall either way, and what follows with it


def test_gptq_in_the_order_of_the_file() -> None:
    x, w = correlated(512, 256), weight(20, 256)
    small = gptq(w, statistics(x), 64, RoundingOptions(act_order=False))
    assert output_error(w, small, x) < 0.8 * output_error(w, round_nearest(w, 64), x)


def test_gptq_without_anything_to_learn_from_rounds_to_the_nearest() -> None:
    w = weight(20, 128)
    inputs = InputStatistics(128, with_products=True)
    inputs.add(torch.eye(128))
    small, nearest = gptq(w, inputs, 32, RoundingOptions()), round_nearest(w, 32)
    assert all(torch.equal(small[name], nearest[name]) for name in nearest)


def test_dead_channels_and_few_samples_do_no_harm() -> None:
    x, w = correlated(8, 128), weight(20, 128)
    x[:, 5] = 0
    for solve in SOLVERS.values():
        small = solve(w, statistics(x), 32, RoundingOptions())
        assert output_error(w, small, x) <= output_error(w, round_nearest(w, 32), x) * 1.001


def test_awq_is_rounding_to_the_nearest_where_that_is_best() -> None:
    w = weight(20, 128)
    small = SOLVERS["awq"](w, statistics(torch.randn(256, 128, generator=torch.Generator().manual_seed(0))), 32, RoundingOptions())
    assert output_error(w, small, torch.eye(128)) < 1.2 * output_error(w, round_nearest(w, 32), torch.eye(128))


def test_statistics_keep_rows_of_every_sample_and_bounded_many() -> None:
    inputs = InputStatistics(4, with_products=True)
    for value in (1.0, 2.0):
        inputs.add(torch.full((1, 1000, 4), value))
    inputs.add(torch.empty(0, 4))
    assert inputs.count == 2000
    assert len(inputs.rows_MK) <= 32
    assert set(inputs.rows_MK.flatten().tolist()) == {1.0, 2.0}
    torch.testing.assert_close(inputs.products_KK, torch.full((4, 4), 5000.0))
    torch.testing.assert_close(inputs.squares_K, torch.full((4,), 5000.0))
