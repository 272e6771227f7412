"""Flickr8k: photos of people and animals, five captions each. Hodosh, Young and Hockenmaier, 2013."""

from __future__ import annotations

import os
import random
from pathlib import Path

from salticid.data.conversation import Example, Turn
from salticid.data.datasets.files import check_split, read_json, rows_of
from salticid.data.questions.balance import HARD, BalancedThings
from salticid.data.questions.captions import caption_turn
from salticid.data.questions.conversations import converse
from salticid.data.questions.existence import exist_all
from salticid.data.questions.facts import fact_turn
from salticid.data.questions.mentions import read_mentions
from salticid.data.questions.unknown import absent, unknown
from salticid.data.records import CaptionedPhoto

EXISTENCE, UNKNOWN, ABSENT = 0.5, 0.04, 0.04
"""Shares of the questions; the rest ask for facts that the captions state."""


def read_photos(folder: str | os.PathLike[str], split: str = "train") -> list[CaptionedPhoto]:
    """The photos of `train` or `dev`.

    Raises:
        ConfigurationError: another split. DataError: its file is missing or damaged.
    """
    check_split(split, ("train", "dev"))
    rows = rows_of(read_json(folder, f"{split}.json"), ("image", "captions"), Path(folder) / f"{split}.json")
    return [CaptionedPhoto(Path(folder) / "images" / row["image"], tuple(row["captions"])) for row in rows]


class Flickr8k:
    """Captions and questions made from them. `captions` and `questions` are how many of each an example holds at most.

    `hard_negatives`: see `BalancedThings`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], split: str = "train", captions: int = 5, questions: int = 4, hard_negatives: float = HARD
    ) -> None:
        self.photos = read_photos(folder, split)
        self.captions, self.questions = captions, questions
        mentions = [read_mentions(photo.captions) for photo in self.photos]
        self.things = BalancedThings([m.present() for m in mentions], [m.excluded() for m in mentions], hard=hard_negatives)

    def __len__(self) -> int:
        return len(self.photos)

    def example(self, index: int, seed: int) -> Example:
        """The photo at `index` with its captions, in a drawn order, and questions drawn by `seed`."""
        photo, random_ = self.photos[index], random.Random(f"{seed}/{index}")
        written = random_.sample(photo.captions, min(self.captions, len(photo.captions)))
        openings = [turn for caption in written if (turn := caption_turn(caption, random_))]
        return Example((photo.path,), converse(openings, self._ask(index, random_), random_), photo.captions)

    def _ask(self, index: int, random_: random.Random) -> list[Turn]:
        kinds = random_.choices(
            ("existence", "unknown", "absent", "fact"),
            (EXISTENCE, UNKNOWN, ABSENT, 1 - EXISTENCE - UNKNOWN - ABSENT),
            k=self.questions,
        )
        turns: dict[str, Turn] = {}
        for kind in kinds:
            if kind == "unknown":
                turn: Turn | None = unknown(random_)
            elif kind == "absent":
                thing = self.things.draw_absent(index, random_)
                turn = absent(thing, random_) if thing else None
            elif kind == "fact":
                turn = fact_turn(self.photos[index].captions, random_)
            else:
                continue
            if turn:
                turns.setdefault(turn.question, turn)
        for turn in exist_all(self.things.draw(index, kinds.count("existence"), random_), random_):
            turns.setdefault(turn.question, turn)
        asked = list(turns.values())
        random_.shuffle(asked)
        return asked
