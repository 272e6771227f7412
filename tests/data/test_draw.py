"""Boxes on a photo of its own size, drawn where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from salticid.data.boxes import Region
from salticid.data.draw import COLOURS, draw_regions


def grey(width: int = 200, height: int = 100, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), 128 if mode == "L" else (128, 128, 128))


def changed(photo: Image.Image) -> np.ndarray:
    return np.argwhere((np.asarray(photo) != 128).any(-1))


def test_frame_stands_on_the_box_and_the_photo_is_left_alone() -> None:
    photo = grey()
    drawn = draw_regions(photo, [Region(0.25, 0.2, 0.75, 0.8)])
    assert drawn.size == photo.size
    assert changed(photo).size == 0
    assert changed(drawn).min(0).tolist() == [20, 50]
    assert changed(drawn).max(0).tolist() == [79, 149]
    assert drawn.getpixel((50, 20)) == ImageColor.getrgb(COLOURS[0])
    assert drawn.getpixel((100, 50)) == (128, 128, 128)


def test_label_stands_above_the_frame_or_inside_at_the_edge() -> None:
    above = changed(draw_regions(grey(), [Region(0.25, 0.5, 0.75, 0.9, "a dog")]))
    assert 25 < above[:, 0].min() < 49
    inside = draw_regions(grey(), [Region(0.0, 0.0, 1.0, 1.0, "a dog")])
    assert inside.size == (200, 100)
    assert (np.asarray(inside)[3:10, 3:30] != 128).any()


def test_one_colour_for_each_label() -> None:
    boxes = [Region(0.0, 0.5, 0.2, 0.9, "dog"), Region(0.4, 0.5, 0.6, 0.9, "cat"), Region(0.8, 0.5, 0.95, 0.9, "dog")]
    drawn = draw_regions(grey(), boxes)
    seen = [drawn.getpixel((round(box.left * 200), 80)) for box in boxes]
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (5000, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_any_photo_and_any_box(size: tuple[int, int], mode: str) -> None:
    regions = [Region(0, 0, 0, 0, "point"), Region(1, 1, 1, 1, "ünlösbar 漢字"), Region(0, 0, 1, 1)] * 4
    assert draw_regions(grey(*size, mode=mode), regions).size == size
