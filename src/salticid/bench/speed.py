"""Prefill and decode, ours and peers' in turn, so that whatever the machine does beside hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from salticid.errors import InputError

Clock = Callable[[], float]
Progress = Callable[[str], None]


class Runner(Protocol):
    """A way to run a model: greedy, one prompt at a time, with a cache.

    weights_read: bytes of weights that one decode step reads, or `None` where the runner does not tell.
    """

    name: str
    weights_read: int | None

    def run(self, prompt: Sequence[int], new_tokens: int, on_token: Callable[[int], None]) -> None:
        """Call `on_token` with each of `new_tokens` ids as soon as it is decided; nothing may end the answer before."""


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, and the slowest and the fastest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Speed:
    """One runner's tokens per second: of the prompt, its first answer token included, and of every further token."""

    name: str
    prefill: Spread
    decode: Spread
    weights_read: int | None
    tokens: tuple[int, ...]

    def bandwidth(self) -> float | None:
        """Bytes of weights read per second while decoding."""
        return None if self.weights_read is None else self.weights_read * self.decode.median

    def same_tokens(self, other: Speed) -> int:
        """How many tokens of both answers are equal, from the first on."""
        pairs = list(zip(self.tokens, other.tokens, strict=False))
        return next((index for index, (own, others) in enumerate(pairs) if own != others), len(pairs))


def measure(
    runners: Sequence[Runner],
    prompt: Sequence[int],
    new_tokens: int,
    rounds: int,
    clock: Clock = time.perf_counter,
    progress: Progress = lambda _: None,
) -> list[Speed]:
    """Every runner once to warm up, then `rounds` times each, in turn.

    Raises:
        InputError: fewer than two new tokens (there would be no decode step), or no round; a runner that stops early.
    """
    if new_tokens < 2 or rounds < 1 or not prompt:
        raise InputError(f"a measurement needs a prompt, 2 new tokens and 1 round, not {len(prompt)}, {new_tokens} and {rounds}")
    prefill: dict[str, list[float]] = {runner.name: [] for runner in runners}
    decode: dict[str, list[float]] = {runner.name: [] for runner in runners}
    answers: dict[str, tuple[int, ...]] = {}
    for round_ in range(rounds + 1):
        for runner in runners:
            progress(f"{runner.name}: {f'round {round_} of {rounds}' if round_ else 'warming up'}")
            first, rest, answers[runner.name] = _time(runner, prompt, new_tokens, clock)
            if round_:
                prefill[runner.name].append(len(prompt) / first)
                decode[runner.name].append((new_tokens - 1) / rest)
    return [
        Speed(runner.name, Spread.of(prefill[runner.name]), Spread.of(decode[runner.name]), runner.weights_read, answers[runner.name])
        for runner in runners
    ]


def _time(runner: Runner, prompt: Sequence[int], new_tokens: int, clock: Clock) -> tuple[float, float, tuple[int, ...]]:
    """Seconds to the first token, seconds from there to the last, and the tokens."""
    times, tokens = [clock()], []

    def on_token(token: int) -> None:
        times.append(clock())
        tokens.append(token)

    runner.run(prompt, new_tokens, on_token)
    if len(tokens) != new_tokens:
        raise InputError(f"{runner.name} wrote {len(tokens)} tokens instead of {new_tokens}; ask for fewer, or shorten the prompt")
    return max(times[1] - times[0], 1e-9), max(times[-1] - times[1], 1e-9), tuple(tokens)
