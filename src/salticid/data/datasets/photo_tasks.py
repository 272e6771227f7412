"""TinyGPT-V's tasks over the small data sets: `[refer]`, `[identify]`, `[detection]`, `[grounding]`, `[caption]` and `[vqa]` from captions,
questions and boxes, in the words and the boxes' format of the large ones.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from salticid.data.boxes import Region, encode_box, encode_boxes
from salticid.data.conversation import Example, Turn
from salticid.data.datasets import coco, daquar, flickr8k
from salticid.data.datasets.told import with_told
from salticid.data.questions.captions import tidy
from salticid.data.records import Box, BoxedPhoto
from salticid.data.scenes import Scene, check_most, compose, read_cutouts
from salticid.data.tasks import instruction
from salticid.data.views import View, draw_view
from salticid.errors import ConfigurationError

READERS: dict[str, Any] = {"flickr8k": flickr8k.read_photos, "daquar": daquar.read_photos, "coco": coco.read_photos}
SMALLEST = 0.005
"""Least share of the photo that an object must cover to be asked for."""


class PhotoTasks:
    """Photos of `reader` with up to `turns` turns, each a conversation of its own, of tasks drawn from `tasks`.

    Args:
        reader: a key of `READERS`.
        tasks: keys of `WRITERS`; a photo that a task has nothing to say about passes it over.
        window: below 1, photos with boxes are shown through windows of at least this share of each side, mirrored half of the time.
        cutouts: folder of cut-out pictures; up to `most` of them are pasted onto each photo, which must have captions and no boxes.
        boxes: folder with boxes that a model told of photos with captions (`salticid data boxes`); photos without any are left out.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        reader: str = "coco",
        tasks: Sequence[str] = ("refer", "identify", "detection"),
        turns: int = 4,
        split: str = "train",
        window: float = 1.0,
        cutouts: str | None = None,
        most: int = 4,
        boxes: str | None = None,
    ) -> None:
        if not 0 < window <= 1:
            raise ConfigurationError(f"window is {window}; it is the least share of a photo's sides, above 0 and at most 1")
        for what, given, known in (("reader", [reader], READERS), ("tasks", list(tasks), WRITERS)):
            if strange := [name for name in given if name not in known] or (["nothing"] if not given else []):
                raise ConfigurationError(f"{what} names {', '.join(strange)}; known: {', '.join(known)}")
        check_most(most)
        if (cutouts or boxes) and reader != "flickr8k":
            raise ConfigurationError(f"cutouts and boxes are for photos of the reader flickr8k, not of {reader}")
        if cutouts and boxes:
            raise ConfigurationError("cutouts would hide what the boxes are of; give one of both, or two data sets")
        self.photos: list[Any] = READERS[reader](folder, split)
        if boxes is not None:
            self.photos = with_told(self.photos, boxes)
        self.tasks, self.turns, self.window = list(tasks), turns, window
        self.cutouts, self.most = [] if cutouts is None else read_cutouts(cutouts), most

    def __len__(self) -> int:
        return len(self.photos)

    def example(self, index: int, seed: int) -> Example:
        """The photo at `index` with turns drawn by `seed`; none where no task has anything to say."""
        photo, chance = self.photos[index], random.Random(f"{seed}/{index}")
        view: View | Scene | None = None
        if self.cutouts:
            view, photo = compose(photo, self.cutouts, self.most, chance)
        elif self.window < 1 and isinstance(photo, BoxedPhoto):
            view = draw_view(self.window, chance)
            photo = view.of_boxes(photo)
        drawn = [turn for task in chance.choices(self.tasks, k=self.turns) for turn in WRITERS[task](photo, chance)]
        return Example((photo.path,), tuple((turn,) for turn in dict.fromkeys(drawn)), view=view)


def bare(photo: Any, chance: random.Random) -> list[Turn]:
    """A caption behind nothing, as stages 1 and 2 learn it."""
    captions = [text for caption in getattr(photo, "captions", ()) if (text := tidy(caption))]
    return [Turn("", chance.choice(captions))] if captions else []


def caption(photo: Any, chance: random.Random) -> list[Turn]:
    return [Turn(instruction("caption", chance=chance), turn.answer) for turn in bare(photo, chance)]


def vqa(photo: Any, chance: random.Random) -> list[Turn]:
    """A question that people asked about the photo."""
    asked = getattr(photo, "questions", ())
    if not asked:
        return []
    question, answer = chance.choice(asked)
    return [Turn(instruction("vqa", question, chance), answer)]


def refer(photo: Any, chance: random.Random) -> list[Turn]:
    """Where is the only one of its kind?"""
    return [Turn(instruction("refer", box.category, chance), encode_box(region(box))) for box in _one(lone_objects(photo), chance)]


def identify(photo: Any, chance: random.Random) -> list[Turn]:
    """What is in this box?"""
    return [Turn(instruction("identify", encode_box(region(box)), chance), box.category) for box in _one(_large(photo), chance)]


def detection(photo: Any, chance: random.Random) -> list[Turn]:
    """All boxes of a kind of which none is a crowd."""
    crowds = {box.category for box in getattr(photo, "objects", ()) if box.crowd}
    kinds = sorted({box.category for box in _large(photo)} - crowds)
    if not kinds:
        return []
    kind = chance.choice(kinds)
    boxes = [region(box) for box in photo.objects if box.category == kind][:MOST]
    return [Turn(instruction("detection", kind, chance), encode_boxes(kind, boxes))]


def grounding(photo: Any, chance: random.Random) -> list[Turn]:
    """Everything that has a box, the kind of the largest first, each kind with its boxes."""
    kinds: dict[str, list[Region]] = {}
    for box in sorted(_large(photo), key=lambda box: -box.area)[:MOST]:
        kinds.setdefault(box.category, []).append(region(box))
    written = " ".join(encode_boxes(kind, boxes) for kind, boxes in kinds.items())
    return [Turn(instruction("grounding", chance=chance), written)] if kinds else []


def places(photo: Any, chance: random.Random) -> list[Turn]:
    """Every box with its name, behind nothing: for a Q-Former whose queries learn boxes."""
    written = [encode_boxes(box.category, [region(box)]) for box in _large(photo)]
    return [Turn("", " ".join(written))] if written else []


MOST = 6
"""Boxes that an answer names at most."""

WRITERS: dict[str, Callable[[Any, random.Random], list[Turn]]] = {
    "bare": bare,
    "caption": caption,
    "vqa": vqa,
    "refer": refer,
    "identify": identify,
    "detection": detection,
    "grounding": grounding,
    "places": places,
}


def region(box: Box) -> Region:
    """The same box by its edges, cut off at the photo's."""
    right, bottom = min(box.left + box.width, 1.0), min(box.top + box.height, 1.0)
    return Region(max(box.left, 0.0), max(box.top, 0.0), right, bottom, box.category)


def _large(photo: Any) -> list[Box]:
    return [box for box in getattr(photo, "objects", ()) if box.area >= SMALLEST and not box.crowd]


def lone_objects(photo: Any) -> list[Box]:
    """Objects that are large enough to be asked for, and the only ones of their kind on the photo."""
    kinds = [box.category for box in getattr(photo, "objects", ())]
    return [box for box in _large(photo) if kinds.count(box.category) == 1]


def _one(boxes: Sequence[Box], chance: random.Random) -> list[Box]:
    return [chance.choice(boxes)] if boxes else []
