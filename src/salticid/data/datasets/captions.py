"""Published lists of captions, in the words of TinyGPT-V's stages 3 and 4."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from salticid.data.conversation import Turn
from salticid.data.datasets.listing import COCO_2014, TEXT, TEXT_OR_NUMBER, CleanListing, Listing, entries_below
from salticid.data.options import check_names

ALIGNMENT_QUESTIONS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
"""What MiniGPT-4 asks for its detailed descriptions (its `prompts/alignment.txt`, which TinyGPT-V's stage 3 names)."""


class CcSbuAlign(Listing):
    """Detailed descriptions of 3,439 photos: MiniGPT-4's second stage, TinyGPT-V's third.

    `filter_cap.json` is `{"annotations": [{"image_id": "2", "caption": "..."}]}`, photos are `image/2.jpg`. `prompts` are the questions
    drawn from.
    """

    annotations = "filter_cap.json"
    images = "image"
    keys: ClassVar = {"image_id": TEXT_OR_NUMBER, "caption": TEXT}

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | Sequence[str] | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        prompts: Sequence[str] = ALIGNMENT_QUESTIONS,
    ) -> None:
        self.prompts = check_names("prompts", prompts)
        super().__init__(folder, annotations, images, skip_missing)

    def entries(self, path: Path) -> Iterable[Any]:
        return entries_below(path, "annotations")

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        yield [f"{row['image_id']}.jpg", row["caption"]]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return (Turn(chance.choice(self.prompts), record[1]),)


class CocoCaption(CleanListing):
    """COCO's captions in Karpathy's split, one row each: `{"caption": "...", "image": "train2014/COCO_train2014_000000000009.jpg"}`.

    Rows about photos of COCO's validation set are left out, as upstream does.
    """

    annotations = "coco_karpathy_train.json"
    images = COCO_2014
    keys: ClassVar = {"image": TEXT, "caption": TEXT}

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        if "train" in row["image"]:
            yield [row["image"].rpartition("/")[2], row["caption"]]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return self.turn("caption", "", record[1], chance)


class TextCaps(CleanListing):
    """TextCaps, captions that read what is written on a photo: `{"data": [{"image_id": "0054c91397f2fe05", "caption_str": "..."}]}`."""

    annotations = "TextCaps_0.1_train.json"
    images = "train_images"
    keys: ClassVar = {"image_id": TEXT, "caption_str": TEXT}

    def entries(self, path: Path) -> Iterable[Any]:
        return entries_below(path, "data")

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        yield [f"{row['image_id']}.jpg", row["caption_str"]]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return self.turn("caption", "", record[1], chance)
