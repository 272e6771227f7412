"""DAQUAR: photos of rooms with questions that people wrote. Malinowski and Fritz, 2014."""

from __future__ import annotations

import os
import random
from pathlib import Path

from salticid.data.conversation import Example, Turn
from salticid.data.datasets.files import check_split, is_held_out, read_json, rows_of
from salticid.data.questions.balance import BalancedThings
from salticid.data.questions.conversations import converse
from salticid.data.questions.existence import exist_all
from salticid.data.questions.rooms import OUTDOOR, possible_in, things_in
from salticid.data.questions.unknown import unknown
from salticid.data.records import QuestionedPhoto
from salticid.errors import DataError

HELD_OUT = 15
"""Percent of the photos that are held out."""


def spoken(answer: str) -> str:
    """The answer as words: `tape_dispenser` becomes `tape dispenser`, several stay in their order, joined by ", "."""
    return ", ".join(part.strip().replace("_", " ") for part in answer.split(",") if part.strip())


class Daquar:
    """Questions as they were asked, and `existence` more about things in the room.

    An example holds `questions` of the photo's own at most; other seeds draw others. `photos` have answers as written by
    `spoken`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], split: str = "train", questions: int = 9, existence: int = 2, unknowns: float = 0.2
    ) -> None:
        check_split(split, ("train", "heldout"))
        path = Path(folder) / "train.json"
        by_photo: dict[str, list[tuple[str, str]]] = {}
        for row in rows_of(read_json(folder, "train.json"), ("image", "question", "answer"), path):
            if is_held_out(row["image"], HELD_OUT) == (split == "heldout"):
                by_photo.setdefault(row["image"], []).append((row["question"].strip(), spoken(row["answer"])))
        if not by_photo:
            raise DataError(f"{path} has no photo of the split {split!r}; fetch the file again or choose another split.")
        self.photos = [QuestionedPhoto(Path(folder) / "images" / name, tuple(asked)) for name, asked in by_photo.items()]
        self.questions, self.existence, self.unknowns = questions, existence, unknowns
        asked = [photo.questions for photo in self.photos]
        self.things = BalancedThings([things_in(a) for a in asked], [possible_in(a) for a in asked])

    def __len__(self) -> int:
        return len(self.photos)

    def example(self, index: int, seed: int) -> Example:
        """The photo at `index` with some of its questions, drawn by `seed` without repetition."""
        photo, random_ = self.photos[index], random.Random(f"{seed}/{index}")
        turns = [Turn(*pair) for pair in random_.sample(photo.questions, min(self.questions, len(photo.questions)))]
        drawn = self.things.draw(index, self.existence, random_)
        turns += exist_all(
            [(random_.choice(OUTDOOR) if not there and random_.random() < 0.1 else thing, there) for thing, there in drawn], random_
        )
        if random_.random() < self.unknowns:
            turns.append(unknown(random_))
        return Example((photo.path,), converse((), turns, random_))
