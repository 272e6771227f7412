"""Speeds from a clock that is told what to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from salticid.bench.report import speed_table, speed_values
from salticid.bench.speed import Speed, Spread, measure
from salticid.errors import InputError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """Takes so many seconds for the prompt, and for each further token as many as the round's number says."""

    weights_read: int | None = 1000

    def __init__(self, name: str, clock: Clock, first: float, each: Sequence[float], diary: list[str], short: int = 0):
        self.name, self.clock, self.first, self.each, self.diary, self.short = name, clock, first, list(each), diary, short

    def run(self, prompt: Sequence[int], new_tokens: int, on_token: Callable[[int], None]) -> None:
        self.diary.append(self.name)
        each = self.each.pop(0)
        for index in range(new_tokens - self.short):
            self.clock.now += self.first if index == 0 else each
            on_token(7 if self.name == "slow" and index > 1 else index)


@pytest.fixture
def speeds() -> list[Speed]:
    clock, diary = Clock(), []
    quick = Scripted("quick", clock, 2.0, [99.0, 0.5, 0.25, 1.0], diary)
    slow = Scripted("slow", clock, 4.0, [99.0, 1.0, 1.0, 1.0], diary)
    slow.weights_read = None
    measured = measure([quick, slow], range(100), 5, 3, clock)
    assert diary == ["quick", "slow"] * 4  # in turn, the first of each to warm up
    return measured


def test_medians_and_spreads(speeds: list[Speed]) -> None:
    quick, slow = speeds
    assert quick.prefill == Spread(50.0, 50.0, 50.0)
    assert quick.decode == Spread(2.0, 1.0, 4.0)
    assert slow.decode == Spread(1.0, 1.0, 1.0)
    assert quick.bandwidth() == 2000.0
    assert slow.bandwidth() is None


def test_ratios_are_ours_over_theirs(speeds: list[Speed]) -> None:
    ours, theirs = speed_values(speeds, bandwidth=4000.0)
    assert ours["bandwidth_share"] == 0.5
    assert "ratio" not in ours
    assert theirs["ratio"] == {"prefill": 2.0, "decode": 2.0}
    assert theirs["same_tokens"] == 2
    assert theirs["bandwidth_share"] is None
    table = speed_table(speeds, 4000.0).splitlines()
    assert table[2] == "| quick | 50.0 (50.0-50.0) | 2.00 (1.00-4.00) | 50% |  |  |  |"
    assert table[3] == "| slow | 25.0 (25.0-25.0) | 1.00 (1.00-1.00) |  | 2.00x | 2.00x | 2 of 5 |"


def test_refusals() -> None:
    clock = Clock()
    with pytest.raises(InputError, match="lazy wrote 4 tokens instead of 5"):
        measure([Scripted("lazy", clock, 1, [1, 1], [], short=1)], [1], 5, 1, clock)
    for prompt, new, rounds in (([], 5, 1), ([1], 1, 1), ([1], 5, 0)):
        with pytest.raises(InputError, match="a measurement needs"):
            measure([], prompt, new, rounds, clock)
