"""Photos of Flickr8k with cut-out things pasted onto them, and nano's questions about these things."""

from __future__ import annotations

import os
import random

from salticid.data.conversation import Example, Turn
from salticid.data.datasets.flickr8k import read_photos
from salticid.data.questions import boxes
from salticid.data.questions.conversations import converse
from salticid.data.questions.existence import exist_all
from salticid.data.questions.mentions import read_mentions
from salticid.data.records import BoxedPhoto
from salticid.data.scenes import check_most, compose, read_cutouts, untold

EXISTENCE, SIDE = 0.8, 0.1
"""Shares of the questions; the rest ask where a thing is."""


class Flickr8kScenes:
    """Photos with one to `most` cut-outs of the folder `cutouts`, and `questions` at most about what is pasted.

    Half of the questions whether a thing is there ask for a cut-out that another scene has. What the captions name, or what may be there
    unsaid, is neither pasted nor called absent; so a scene tells what a thing looks like, and nothing about where it belongs.
    """

    def __init__(self, folder: str | os.PathLike[str], cutouts: str, split: str = "train", most: int = 4, questions: int = 6) -> None:
        check_most(most)
        self.photos = read_photos(folder, split)
        mentions = [read_mentions(photo.captions) for photo in self.photos]
        self.unsure = [frozenset(m.present()) | frozenset(m.excluded()) for m in mentions]
        self.cutouts, self.most, self.questions = read_cutouts(cutouts), most, questions

    def __len__(self) -> int:
        return len(self.photos)

    def example(self, index: int, seed: int) -> Example:
        """The photo at `index` with what `seed` pastes onto it and asks; without conversations where nothing found room."""
        photo, random_ = self.photos[index], random.Random(f"{seed}/{index}")
        possible = [cutout for cutout in untold(photo, self.cutouts) if cutout.name not in self.unsure[index]]
        scene, shown = compose(photo, possible, self.most, random_)
        kinds = random_.choices(("existence", "side", "position"), (EXISTENCE, SIDE, 1 - EXISTENCE - SIDE), k=self.questions)
        turns = exist_all(self._draw(shown, [c.name for c in possible], kinds.count("existence"), random_), random_)
        for kind in kinds:
            if told := _turns(kind, shown, random_):
                turns.append(random_.choice(told))
        unique = list({turn.question: turn for turn in turns}.values())
        random_.shuffle(unique)
        return Example((photo.path,), converse((), unique, random_), view=scene)

    @staticmethod
    def _draw(shown: BoxedPhoto, names: list[str], count: int, random_: random.Random) -> list[tuple[str, bool]]:
        """Things there and not there with equal chance; a kind with more cut-outs is drawn more often as either."""
        here = [box.category for box in shown.objects]
        lacking = [name for name in names if name not in here]
        if not here or not lacking:
            return []
        return [(random_.choice(here if there else lacking), there) for there in random_.choices((True, False), k=count)]


def _turns(kind: str, shown: BoxedPhoto, random_: random.Random) -> list[Turn]:
    if kind == "position":
        return boxes.position_turns(shown)
    # what else the photo shows has no box: only a question about two things that have one is sure to have its answer
    return [turn for turn in boxes.side_turns(shown, random_) if turn.answer in ("yes", "no")] if kind == "side" else []
