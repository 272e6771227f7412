"""What every benchmark offers to the runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Item:
    """One photo and one question about it."""

    photo: Path
    question: str


class Benchmark(Protocol):
    """Items, a score for answers to them, and the answers of someone who sees no photo."""

    @property
    def items(self) -> Sequence[Item]:
        """What is asked, on photos that no training split holds."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Longest answer that makes sense, in tokens."""
        ...

    def score(self, answers: Sequence[str]) -> dict[str, float]:
        """Figures for one answer per item, in the items' order."""
        ...

    def guesses(self) -> list[str]:
        """The best answers that the training split's statistics alone give: one per item, photos unseen."""
        ...
