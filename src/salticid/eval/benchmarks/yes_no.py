"""Yes or no about objects, in POPE's way, on COCO photos held out by photo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from salticid.data.datasets.coco import read_photos
from salticid.data.questions.heldout import yes_no_questions
from salticid.eval.benchmarks.base import Item
from salticid.scorers.answers import yes_no_scores


class YesNoObjects:
    """Accuracy over as many yes as no questions (POPE, arXiv 2305.10355); anything that is not a no counts as a yes there."""

    max_new_tokens = 6

    def __init__(self, folder: Path, kind: str):
        photos = read_photos(Path(folder) / "coco", "heldout")
        questions = yes_no_questions(photos, kind)
        self.items = [Item(path, question) for path, question, _ in questions]
        self.labels = [label for _, _, label in questions]
        known = yes_no_questions(read_photos(Path(folder) / "coco", "train"), kind)
        self.prior: dict[str, int] = {}
        for _, question, label in known:
            self.prior[question] = self.prior.get(question, 0) + (1 if label == "yes" else -1)

    def score(self, answers: Sequence[str]) -> dict[str, float]:
        result = yes_no_scores(answers, self.labels)
        return {"accuracy": result.accuracy, "f1": result.f1, "yes_ratio": result.yes_ratio}

    def guesses(self) -> list[str]:
        """Yes where the training photos' questions of the same kind have more yes than no for the same object."""
        return ["yes" if self.prior.get(item.question, 0) > 0 else "no" for item in self.items]
