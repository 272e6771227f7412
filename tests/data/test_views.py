"""Windows on boxed photos: what is seen, and what may still be said about it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salticid.data.records import Box, BoxedPhoto
from salticid.data.views import View, draw_view


def photo(*objects: Box) -> BoxedPhoto:
    return BoxedPhoto(Path("photo.jpg"), ("a dog beside a cup",), objects)


@pytest.mark.parametrize("seed", range(20))
def test_a_box_frames_the_same_pixels_before_and_after(seed: int) -> None:
    """A white object on black: its box in the window is where the white is."""
    chance = random.Random(seed)
    left, top = chance.randint(0, 60), chance.randint(0, 60)
    pixels = np.zeros((100, 100), np.uint8)
    pixels[top : top + 30, left : left + 30] = 255
    view = draw_view(0.5, chance)
    window = np.asarray(view.of_image(Image.fromarray(pixels)))
    (box,) = view.of_boxes(photo(Box("dog", left / 100, top / 100, 0.3, 0.3, False))).objects or (None,)
    rows, columns = np.nonzero(window)
    if box is None:
        assert len(rows) == 0 or min(np.ptp(rows), np.ptp(columns)) <= 1  # a pixel's edge may remain
        return
    height, width = window.shape
    seen = (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
    wanted = (box.left, box.top, box.left + box.width, box.top + box.height)
    assert seen == pytest.approx(wanted, abs=0.045)  # two pixels of fifty


def test_the_whole_view_changes_nothing_but_the_captions() -> None:
    before = photo(Box("dog", 0.1, 0.2, 0.3, 0.4, False), Box("cup", 0.5, 0.5, 0.5, 0.5, True))
    after = View(0.0, 0.0, 1.0, 1.0).of_boxes(before)
    assert after.captions == ()
    for old, new in zip(before.objects, after.objects, strict=True):
        assert (new.category, new.crowd) == (old.category, old.crowd)
        assert (new.left, new.top, new.width, new.height) == pytest.approx((old.left, old.top, old.width, old.height))


def test_a_mirrored_view_swaps_the_sides() -> None:
    (box,) = View(0.0, 0.0, 1.0, 1.0, mirrored=True).of_boxes(photo(Box("dog", 0.1, 0.2, 0.3, 0.4, False))).objects
    assert (box.left, box.top, box.width) == pytest.approx((0.6, 0.2, 0.3))


def test_what_is_seen_in_part_is_never_asked_for_and_what_is_not_seen_is_gone() -> None:
    whole, part, outside = (Box(name, left, 0.1, 0.2, 0.2, False) for name, left in (("dog", 0.1), ("cup", 0.45), ("car", 0.8)))
    seen = View(0.0, 0.0, 0.5, 1.0).of_boxes(photo(whole, part, outside)).objects
    assert [(box.category, box.crowd) for box in seen] == [("dog", False), ("cup", True)]


def test_windows_are_as_large_as_told_and_inside() -> None:
    views = [draw_view(0.6, random.Random(seed)) for seed in range(200)]
    assert all(view.right - view.left >= 0.6 and view.bottom - view.top >= 0.6 for view in views)
    assert all(view.left >= 0 and view.top >= 0 and view.right <= 1.0001 and view.bottom <= 1.0001 for view in views)
    assert {view.mirrored for view in views} == {True, False}
    assert draw_view(0.6, random.Random(3)) == draw_view(0.6, random.Random(3))
