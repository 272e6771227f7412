"""Random views of a photo that keep its words true."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from PIL import Image, ImageEnhance

from salticid.data.boxes import parse_boxes
from salticid.data.conversation import Example

SIDES = re.compile(r"\b(left|right)(most|hand|wards?|side)?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """flip: mirror half of the photos, never one whose words name a side. crop: smallest side kept, as a share (1 = no crop).
    light: brightness, contrast and saturation each change by up to this share; hues stay, so that colours keep their names.

    A photo whose words hold a box is neither mirrored nor cropped.
    """

    flip: bool = False
    crop: float = 1.0
    light: float = 0.0

    def __call__(self, photo: Image.Image, example: Example, rng: random.Random) -> Image.Image:
        if self.light > 0:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                photo = change(photo).enhance(rng.uniform(1 - self.light, 1 + self.light))
        if _holds_a_box(example):
            return photo
        if self.flip and rng.random() < 0.5 and not _names_a_side(example):
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.crop < 1.0:
            width, height = (max(1, round(side * rng.uniform(self.crop, 1.0))) for side in photo.size)
            left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
            photo = photo.crop((left, top, left + width, top + height))
        return photo


def _names_a_side(example: Example) -> bool:
    return any(SIDES.search(turn.question + " " + turn.answer) for turns in example.conversations for turn in turns)


def _holds_a_box(example: Example) -> bool:
    return any(parse_boxes(turn.question + " " + turn.answer) for turns in example.conversations for turn in turns)
