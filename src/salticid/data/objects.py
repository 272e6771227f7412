"""Boxed objects of photos as cut-out pictures, for scenes of real things (`salticid.data.scenes`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from salticid.data.records import Box, BoxedPhoto, common_area
from salticid.errors import DataError

LEAST_SIDE = 32
"""Pixels; smaller objects are passed over, and so are crowds."""
COVERED = 0.4
"""Share of an object that others' boxes may cover, for it to be cut out: of a chair behind a table, the table would be seen."""
FEATHER = 0.06
"""Width of the soft edge, as a share of the shorter side."""


def write_objects(
    photos: Iterable[BoxedPhoto], folder: Path, read: Callable[[Path], Image.Image], left_out: Iterable[str] = ("person",)
) -> int:
    """Write an oval picture of every large, hardly covered object, and beside it its name; returns how many.

    Args:
        folder: must exist; `NUMBER.png` with alpha and `NUMBER.txt` are written to it.
        read: opens a photo, such as `models.photos.read_photo`.
        left_out: kinds of which nothing is written. People are on most photos that scenes are made from.

    Raises:
        DataError: the photos have no such object.
        ImageError: a photo cannot be read.
    """
    kinds, count = set(left_out), 0
    for photo in photos:
        chosen = [box for box in photo.objects if box.category not in kinds and not box.crowd and _is_seen(box, photo)]
        if not chosen:
            continue
        image = read(photo.path)
        for picture, box in ((cut_out(image, box), box) for box in chosen):
            if min(picture.size) >= LEAST_SIDE:
                picture.save(folder / f"{count:05}.png")
                (folder / f"{count:05}.txt").write_text(box.category + "\n", encoding="utf-8")
                count += 1
    if not count:
        raise DataError(f"no photo has an object of {LEAST_SIDE} pixels or more that stands free; cut-outs need photos with boxes")
    return count


def cut_out(image: Image.Image, box: Box) -> Image.Image:
    """The oval inside a box, in RGBA, with soft edges."""
    left, right = round(box.left * image.width), round(box.right * image.width)
    top, bottom = round(box.top * image.height), round((box.top + box.height) * image.height)
    picture = image.convert("RGB").crop((left, top, right, bottom))
    oval = Image.new("L", picture.size, 0)
    ImageDraw.Draw(oval).ellipse((0, 0, picture.width - 1, picture.height - 1), fill=255)
    soft = ImageOps.expand(oval, border := max(1, round(FEATHER * min(picture.size)))).filter(ImageFilter.GaussianBlur(border / 2))
    picture.putalpha(ImageChops.darker(oval, ImageOps.crop(soft, border)))
    return picture


def _is_seen(box: Box, photo: BoxedPhoto) -> bool:
    return all(common_area(box, other) <= COVERED * box.area for other in photo.objects if other is not box)
