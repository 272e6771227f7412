"""Random views of a photo that keep its words true."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import cast

from PIL import Image, ImageEnhance

from salticid.data.boxes import parse_boxes
from salticid.data.conversation import Example
from salticid.data.mirror import mirror_example


@dataclass(frozen=True, slots=True)
class Augmentation:
    """flip: mirror half of the photos; their words exchange left and right, and where these may mean something else the photo stays.
    crop: smallest side kept, as a share (1 = no crop). light: brightness, contrast and saturation each change by up to this share; hues
    stay, so that colours keep their names.

    A photo whose words hold a box is neither mirrored nor cropped.
    """

    flip: bool = False
    crop: float = 1.0
    light: float = 0.0

    def __call__(self, example: Example, rng: random.Random) -> Example:
        """The example, its photos opened before, as another view of them. All photos of an example are mirrored, or none."""
        photos = [self._lit(photo, rng) for photo in cast(tuple[Image.Image, ...], example.images)]
        if not _holds_a_box(example):
            if self.flip and rng.random() < 0.5 and (mirrored := mirror_example(example)) is not None:
                example = mirrored
                photos = [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in photos]
            photos = [self._cut(photo, rng) for photo in photos]
        return replace(example, images=tuple(photos))

    def _lit(self, photo: Image.Image, rng: random.Random) -> Image.Image:
        if self.light > 0:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                photo = change(photo).enhance(rng.uniform(1 - self.light, 1 + self.light))
        return photo

    def _cut(self, photo: Image.Image, rng: random.Random) -> Image.Image:
        if self.crop == 1.0:
            return photo
        width, height = (max(1, round(side * rng.uniform(self.crop, 1.0))) for side in photo.size)
        left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
        return photo.crop((left, top, left + width, top + height))


def _holds_a_box(example: Example) -> bool:
    return any(parse_boxes(turn.question + " " + turn.answer) for turns in example.conversations for turn in turns)
