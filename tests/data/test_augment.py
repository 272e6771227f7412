"""A photo may be mirrored or cut, but its words stay true."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from salticid.data.augment import Augmentation
from salticid.data.conversation import Example, Turn


def photo() -> Image.Image:
    """Black, but for a white column at the left edge."""
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 4, 20))
    return image


def example(*turns: Turn) -> Example:
    return Example(("photo",), ((Turn("What is this?", "a dog"),), turns))


def mirrored(words: Example, seeds: int = 60) -> int:
    """In how many of so many draws."""
    views = (Augmentation(flip=True)(photo(), words, random.Random(seed)) for seed in range(seeds))
    return sum(view.getpixel((39, 0)) == (255, 255, 255) for view in views)


def test_half_of_the_photos_are_mirrored() -> None:
    assert 15 < mirrored(example(Turn("Is it bright?", "yes, an upright copyright sign"))) < 45
    view = Augmentation()(photo(), example(), random.Random(0))
    assert view.tobytes() == photo().tobytes()


@pytest.mark.parametrize(
    "turn",
    [
        Turn("What is on the left?", "a cup"),
        Turn("Where is the cup?", "On the RIGHT."),
        Turn("What is the leftmost thing?", "a cup"),
        Turn("Where is it?", "at the right-hand edge"),
        Turn("Where is it?", "to the righthand side"),
        Turn("Which way does it look?", "leftwards"),
    ],
)
def test_never_where_words_name_a_side(turn: Turn) -> None:
    assert mirrored(example(turn)) == 0
    assert mirrored(example(Turn("What is this?", "a cup"), turn)) == 0


def test_cuts_keep_their_share_and_lie_inside() -> None:
    sizes, corners = set(), set()
    for seed in range(80):
        view = Augmentation(crop=0.5)(photo(), example(), random.Random(seed))
        assert 20 <= view.width <= 40
        assert 10 <= view.height <= 20
        sizes.add(view.size)
        corners.add(view.getpixel((0, 0)))
    assert len(sizes) > 20
    assert len(corners) == 2  # some keep the white edge, some do not


def test_a_draw_repeats_by_its_seed() -> None:
    one, other = (Augmentation(flip=True, crop=0.6)(photo(), example(), random.Random(7)) for _ in range(2))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("turn", [Turn("[refer] the dog", "{<1><2><30><40>}"), Turn("[identify] {<1><2><30><40>}", "a dog")])
def test_a_photo_with_a_box_stays_as_it_is(turn: Turn) -> None:
    views = [Augmentation(flip=True, crop=0.5)(photo(), example(turn), random.Random(seed)) for seed in range(20)]
    assert all(view.tobytes() == photo().tobytes() for view in views)
    assert mirrored(example(Turn("Which <b>?", "<1> of them")))


def test_light_changes_within_its_share_and_hues_stay() -> None:
    red = Image.new("RGB", (8, 8), (150, 60, 60))
    seen = [Augmentation(light=0.3)(red, example(), random.Random(seed)).getpixel((0, 0)) for seed in range(60)]
    assert len(set(seen)) > 50
    assert all(pixel[0] > pixel[1] and abs(pixel[1] - pixel[2]) <= 1 for pixel in seen)
    assert all(150 * 0.7 * 0.7 - 12 < pixel[0] < 150 * 1.3 * 1.3 + 12 for pixel in seen)


def test_light_changes_where_boxes_keep_the_photo_in_place() -> None:
    words = example(Turn("where is the dog?", "{<0><10><50><60>}"))
    view = Augmentation(flip=True, crop=0.5, light=0.4)(photo(), words, random.Random(1))
    assert view.size == photo().size
    assert view.tobytes() != photo().tobytes()
    assert view.getpixel((0, 0)) > view.getpixel((39, 0))
