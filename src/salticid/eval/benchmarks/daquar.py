"""DAQUAR questions on photos held out by photo."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from salticid.data.datasets.daquar import read_photos
from salticid.eval.benchmarks.base import Item
from salticid.scorers.answers import set_match

OPENING_WORDS = 2


class DaquarAnswers:
    """Exact match: the answer's things, as an unordered set, equal the reference's (Malinowski and Fritz, 2014, accuracy)."""

    max_new_tokens = 16

    def __init__(self, folder: Path):
        source = Path(folder) / "daquar"
        self.known = [pair for photo in read_photos(source, "train") for pair in photo.questions]
        pairs = [(photo.path, question, answer) for photo in read_photos(source, "heldout") for question, answer in photo.questions]
        self.items = [Item(path, question) for path, question, _ in pairs]
        self.answers = [answer for _, _, answer in pairs]

    def score(self, answers: Sequence[str]) -> dict[str, float]:
        return {"exact_match": set_match(answers, self.answers).score}

    def guesses(self) -> list[str]:
        """The commonest training answer to the same question, else to questions that open with the same words."""
        same: dict[str, Counter[str]] = defaultdict(Counter)
        alike: dict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in self.known:
            same[question][answer] += 1
            alike[_opening(question)][answer] += 1
        anything = Counter(answer for _, answer in self.known)
        return [(same.get(item.question) or alike.get(_opening(item.question)) or anything).most_common(1)[0][0] for item in self.items]


def _opening(question: str) -> str:
    return " ".join(question.split()[:OPENING_WORDS])
