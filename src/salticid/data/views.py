"""Windows on a boxed photo, perhaps mirrored, whose boxes stay true: many photos' worth of places from one."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from salticid.data.records import Box, BoxedPhoto

if TYPE_CHECKING:
    from PIL import Image

SEEN = 0.5
"""Share of an object that a window must show for it to be called by its name."""


@dataclass(frozen=True, slots=True)
class View:
    """A window by its edges, as fractions of the photo's sides; `mirrored` afterwards."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool = False

    def of_image(self, image: Image.Image) -> Image.Image:
        """The window's pixels, one at least."""
        from PIL import ImageOps  # late: commands know examples before they need a photo

        left, top = int(self.left * image.width), int(self.top * image.height)
        right, bottom = max(left + 1, round(self.right * image.width)), max(top + 1, round(self.bottom * image.height))
        window = image.crop((left, top, right, bottom))
        return ImageOps.mirror(window) if self.mirrored else window

    def of_boxes(self, photo: BoxedPhoto) -> BoxedPhoto:
        """The photo as its window shows it, without captions, for these may tell of what is outside.

        An object that is seen in part becomes a crowd, which is never asked for, and whose kind is never called the only one.
        """
        return replace(photo, captions=(), objects=tuple(seen for box in photo.objects if (seen := self._of_box(box)) is not None))

    def _of_box(self, box: Box) -> Box | None:
        left, right = max(box.left, self.left), min(box.right, self.right)
        top, bottom = max(box.top, self.top), min(box.top + box.height, self.bottom)
        if left >= right or top >= bottom:
            return None
        width, height = self.right - self.left, self.bottom - self.top
        start = self.right - right if self.mirrored else left - self.left
        in_part = (right - left) * (bottom - top) < SEEN * box.area
        return Box(
            box.category,
            left=start / width,
            top=(top - self.top) / height,
            width=(right - left) / width,
            height=(bottom - top) / height,
            crowd=box.crowd or in_part,
        )


def draw_view(smallest: float, chance: random.Random) -> View:
    """A window anywhere, each side at least `smallest` of the photo's, mirrored half of the time."""
    width, height = chance.uniform(smallest, 1.0), chance.uniform(smallest, 1.0)
    left, top = chance.uniform(0.0, 1.0 - width), chance.uniform(0.0, 1.0 - height)
    return View(left, top, left + width, top + height, chance.random() < 0.5)
