"""COCO: photos with every object of 80 categories boxed. Lin et al., 2014."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from salticid.data.conversation import Example, Turn
from salticid.data.datasets.files import check_split, is_held_out, read_json, rows_of
from salticid.data.questions import boxes
from salticid.data.questions.balance import HARD, BalancedThings
from salticid.data.questions.captions import caption_turn
from salticid.data.questions.conversations import converse
from salticid.data.questions.existence import exist_all
from salticid.data.questions.facts import fact_turn
from salticid.data.questions.unknown import absent, unknown
from salticid.data.records import Box, BoxedPhoto
from salticid.errors import DataError

HELD_OUT = 20
"""Percent of the photos that are held out."""

SHARES: dict[str, float] = {
    "existence": 0.58,
    "count": 0.08,
    "zero": 0.02,
    "list": 0.05,
    "side": 0.07,
    "position": 0.06,
    "biggest": 0.03,
    "fact": 0.05,
    "unknown": 0.03,
    "absent": 0.03,
}


def read_photos(folder: str | os.PathLike[str], split: str = "train") -> list[BoxedPhoto]:
    """The photos of `train` or `heldout`.

    Raises:
        ConfigurationError: another split. DataError: `train.json` is missing, damaged, or has none of them.
    """
    check_split(split, ("train", "heldout"))
    path = Path(folder) / "train.json"
    content = read_json(folder, "train.json")
    images = rows_of(
        content.get("images") if isinstance(content, dict) else None, ("image", "width", "height", "captions", "objects"), path
    )
    photos = [_photo(Path(folder), row) for row in images if is_held_out(row["image"], HELD_OUT) == (split == "heldout")]
    if not photos:
        raise DataError(f"{path} has no photo of the split {split!r}; fetch the file again or choose another split.")
    return photos


class CocoObjects:
    """Questions that boxes answer, and captions where a photo has any: `questions` and `captions` at most per example.

    `hard_negatives`: see `BalancedThings`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], split: str = "train", questions: int = 10, captions: int = 5, hard_negatives: float = HARD
    ) -> None:
        self.photos = read_photos(folder, split)
        self.questions, self.captions = questions, captions
        self.things = BalancedThings([boxes.present(p) for p in self.photos], [boxes.marked(p) for p in self.photos], hard=hard_negatives)

    def __len__(self) -> int:
        return len(self.photos)

    def example(self, index: int, seed: int) -> Example:
        """The photo at `index` with its captions and with questions drawn by `seed`."""
        photo, random_ = self.photos[index], random.Random(f"{seed}/{index}")
        written = random_.sample(photo.captions, min(self.captions, len(photo.captions)))
        openings = [turn for caption in written if (turn := caption_turn(caption, random_))]
        kinds = random_.choices(list(SHARES), list(SHARES.values()), k=self.questions)
        turns = exist_all(self.things.draw(index, kinds.count("existence"), random_), random_)
        for kind in kinds:
            if kind != "existence" and (turn := self._turn(kind, index, random_)):
                turns.append(turn)
        unique = list({turn.question: turn for turn in turns}.values())
        random_.shuffle(unique)
        return Example((photo.path,), converse(openings, unique, random_), photo.captions)

    def _turn(self, kind: str, index: int, random_: random.Random) -> Turn | None:
        photo = self.photos[index]
        if kind in ("zero", "absent"):
            thing = self.things.draw_absent(index, random_)
            writer = boxes.zero_turn if kind == "zero" else lambda name: absent(name, random_)
            return writer(thing) if thing else None
        if kind == "unknown":
            return unknown(random_)
        if kind == "fact":
            return fact_turn(photo.captions, random_)
        writers: dict[str, Callable[[], list[Turn]]] = {
            "count": lambda: boxes.count_turns(photo),
            "list": lambda: boxes.list_turns(photo, random_),
            "side": lambda: boxes.side_turns(photo, random_),
            "position": lambda: boxes.position_turns(photo),
            "biggest": lambda: boxes.biggest_turns(photo),
        }
        turns = writers[kind]()
        return random_.choice(turns) if turns else None


def _photo(folder: Path, row: dict[str, Any]) -> BoxedPhoto:
    wide, high = float(row["width"]), float(row["height"])
    objects = []
    for item in row["objects"]:
        left, top, width, height = item["bbox"]
        objects.append(Box(item["category"], left / wide, top / high, width / wide, height / high, bool(item["iscrowd"])))
    return BoxedPhoto(folder / "images" / row["image"], tuple(row["captions"]), tuple(objects))
