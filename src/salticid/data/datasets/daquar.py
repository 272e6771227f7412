"""DAQUAR: photos of rooms with questions that people wrote. Malinowski and Fritz, 2014."""

from __future__ import annotations

import os
import random
from pathlib import Path

from salticid.data.conversation import Example, Turn
from salticid.data.datasets.files import check_split, is_held_out, read_json, rows_of
from salticid.data.questions.balance import HARD, BalancedThings
from salticid.data.questions.conversations import converse
from salticid.data.questions.existence import exist_all
from salticid.data.questions.rooms import OUTDOOR, possible_in, things_in
from salticid.data.questions.unknown import unknown
from salticid.data.records import QuestionedPhoto
from salticid.errors import DataError

HELD_OUT = 15
"""Percent of the photos that are held out."""
TAUGHT = "answers.json"
"""Rows like those of `train.json`, of which a teacher gave the answers."""


def spoken(answer: str) -> str:
    """The answer as words: `tape_dispenser` becomes `tape dispenser`, several stay in their order, joined by ", "."""
    return ", ".join(part.strip().replace("_", " ") for part in answer.split(",") if part.strip())


def read_photos(folder: str | os.PathLike[str], split: str = "train") -> list[QuestionedPhoto]:
    """The photos of `train` or `heldout`, with answers as written by `spoken`.

    Raises:
        ConfigurationError: another split. DataError: `train.json` is missing, damaged, or has none of them.
    """
    check_split(split, ("train", "heldout"))
    by_photo = _asked(Path(folder) / "train.json", split)
    return [QuestionedPhoto(Path(folder) / "images" / name, tuple(asked)) for name, asked in by_photo.items()]


class Daquar:
    """Questions as they were asked, and `existence` more about things in the room.

    An example holds `questions` of the photo's own at most; other seeds draw others. `photos` have answers as written by
    `spoken`. `taught` is a folder with a teacher's answers (`salticid data answers`), of which
    `taught_questions` at most are drawn beside the photo's own. `hard_negatives`: see `BalancedThings`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str = "train",
        questions: int = 9,
        existence: int = 2,
        unknowns: float = 0.2,
        taught: str | os.PathLike[str] | None = None,
        taught_questions: int = 8,
        hard_negatives: float = HARD,
    ) -> None:
        self.photos = read_photos(folder, split)
        told = _told(Path(taught), split) if taught else {}
        self.taught = [tuple(told.get(photo.path.name, ())) for photo in self.photos]
        self.questions, self.taught_questions, self.existence, self.unknowns = questions, taught_questions, existence, unknowns
        asked = [photo.questions for photo in self.photos]
        self.things = BalancedThings([things_in(a) for a in asked], [possible_in(a) for a in asked], hard=hard_negatives)

    def __len__(self) -> int:
        return len(self.photos)

    def example(self, index: int, seed: int) -> Example:
        """The photo at `index` with some of its questions, drawn by `seed` without repetition."""
        photo, random_ = self.photos[index], random.Random(f"{seed}/{index}")
        turns = [Turn(*pair) for pair in random_.sample(photo.questions, min(self.questions, len(photo.questions)))]
        taught = self.taught[index]
        turns += [Turn(*pair) for pair in random_.sample(taught, min(self.taught_questions, len(taught)))]
        drawn = self.things.draw(index, self.existence, random_)
        turns += exist_all(
            [(random_.choice(OUTDOOR) if not there and random_.random() < 0.1 else thing, there) for thing, there in drawn], random_
        )
        if random_.random() < self.unknowns:
            turns.append(unknown(random_))
        return Example((photo.path,), converse((), turns, random_))


def _asked(path: Path, split: str) -> dict[str, list[tuple[str, str]]]:
    """Questions and answers by photo; raises DataError where no photo of the split has any."""
    by_photo: dict[str, list[tuple[str, str]]] = {}
    for row in rows_of(read_json(path.parent, path.name), ("image", "question", "answer"), path):
        if is_held_out(row["image"], HELD_OUT) == (split == "heldout"):
            by_photo.setdefault(row["image"], []).append((row["question"].strip(), spoken(row["answer"])))
    if not by_photo:
        raise DataError(f"{path} has no photo of the split {split!r}; fetch the file again or choose another split.")
    return by_photo


def _told(folder: Path, split: str) -> dict[str, list[tuple[str, str]]]:
    try:
        return _asked(folder / TAUGHT, split)
    except DataError as error:
        raise DataError(f"{folder} has no teacher's answers for these photos; make them with: salticid data answers") from error
