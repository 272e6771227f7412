"""Does it admit that a photo does not tell? Unanswerable questions beside answerable ones, on held-out DAQUAR photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from salticid.data.datasets import daquar, flickr8k
from salticid.data.questions.heldout import unknown_questions
from salticid.eval.benchmarks.base import Item

REFUSAL = "i don't know"


class UnknownQuestions:
    """Share of refusals where a photo cannot tell (wanted: 1) and where a person could answer from it (wanted: 0).

    The unanswerable questions come from templates that training never shows.
    """

    max_new_tokens = 10

    def __init__(self, folder: Path):
        people = flickr8k.read_photos(Path(folder) / "flickr8k", "dev")[:200]
        rooms = daquar.read_photos(Path(folder) / "daquar", "heldout")
        asked = [Item(path, question) for path, question in unknown_questions(people)]
        answerable = [Item(photo.path, question) for photo in rooms for question, _ in photo.questions[:2]]
        self.items = [*asked, *answerable]
        self.unanswerable = len(asked)

    def score(self, answers: Sequence[str]) -> dict[str, float]:
        refused = [answer.lower().startswith(REFUSAL) for answer in answers]
        count = self.unanswerable
        return {
            "admits": sum(refused[:count]) / count,
            "refuses_wrongly": sum(refused[count:]) / max(1, len(refused) - count),
        }

    def guesses(self) -> list[str]:
        return ["I don't know."] * len(self.items)
