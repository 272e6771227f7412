"""A photo may be mirrored or cut, but its words stay true."""

from __future__ import annotations

import random
from dataclasses import replace

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
    return Example((photo(),), ((Turn("What is this?", "a dog"),), turns))


def shown(augmentation: Augmentation, words: Example, seed: int) -> Image.Image:
    return augmentation(words, random.Random(seed)).images[0]


def is_mirrored(view: Image.Image) -> bool:
    return bool(view.getpixel((view.width - 1, 0)) == (255, 255, 255))


def mirrored(words: Example, seeds: int = 60) -> int:
    """In how many of so many draws."""
    return sum(is_mirrored(shown(Augmentation(flip=True), words, seed)) for seed in range(seeds))


def test_half_of_the_photos_are_mirrored() -> None:
    assert 15 < mirrored(example(Turn("Is it bright?", "yes, an upright copyright sign"))) < 45
    view = shown(Augmentation(), example(), 0)
    assert view.tobytes() == photo().tobytes()


def test_sides_change_places_with_the_photo() -> None:
    turns = Turn("What is on the left side of the cup?", "a dog"), Turn("Where is it?", "To the RIGHT.")
    words = replace(example(*turns), references=("a man on the Left",))
    views = [Augmentation(flip=True)(words, random.Random(seed)) for seed in range(60)]
    assert 15 < sum(is_mirrored(view.images[0]) for view in views) < 45
    for view in views:
        first, second = view.conversations[1]
        told = first.question, first.answer, second.answer, view.references[0]
        if is_mirrored(view.images[0]):
            assert told == ("What is on the right side of the cup?", "a dog", "To the LEFT.", "a man on the Right")
        else:
            assert view.conversations == words.conversations
            assert view.references == words.references


def test_never_where_a_side_may_be_something_else() -> None:
    turn = Turn("What is right next to the bed?", "a lamp")
    assert mirrored(example(turn)) == 0
    assert mirrored(example(Turn("What is on the left?", "a cup"), turn)) == 0
    assert mirrored(replace(example(), references=("he left the house",))) == 0


def test_photos_of_an_example_are_mirrored_together() -> None:
    words = replace(example(), images=(photo(), photo()))
    for seed in range(40):
        one, other = Augmentation(flip=True)(words, random.Random(seed)).images
        assert is_mirrored(one) == is_mirrored(other)


def test_cuts_keep_their_share_and_lie_inside() -> None:
    sizes, corners = set(), set()
    for seed in range(80):
        view = shown(Augmentation(crop=0.5), example(), seed)
        assert 20 <= view.width <= 40
        assert 10 <= view.height <= 20
        sizes.add(view.size)
        corners.add(view.getpixel((0, 0)))
    assert len(sizes) > 20
    assert len(corners) == 2  # some keep the white edge, some do not


def test_a_draw_repeats_by_its_seed() -> None:
    one, other = (shown(Augmentation(flip=True, crop=0.6), example(), 7) for _ in range(2))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("turn", [Turn("[refer] the dog", "{<1><2><30><40>}"), Turn("[identify] {<1><2><30><40>}", "a dog")])
def test_a_photo_with_a_box_stays_as_it_is(turn: Turn) -> None:
    views = [shown(Augmentation(flip=True, crop=0.5), example(turn), seed) for seed in range(20)]
    assert all(view.tobytes() == photo().tobytes() for view in views)
    assert mirrored(example(Turn("Which <b>?", "<1> of them")))


def test_light_changes_within_its_share_and_hues_stay() -> None:
    red = replace(example(), images=(Image.new("RGB", (8, 8), (150, 60, 60)),))
    seen = [shown(Augmentation(light=0.3), red, seed).getpixel((0, 0)) for seed in range(60)]
    assert len(set(seen)) > 50
    assert all(pixel[0] > pixel[1] and abs(pixel[1] - pixel[2]) <= 1 for pixel in seen)
    assert all(150 * 0.7 * 0.7 - 12 < pixel[0] < 150 * 1.3 * 1.3 + 12 for pixel in seen)


def test_light_changes_where_boxes_keep_the_photo_in_place() -> None:
    words = example(Turn("where is the dog?", "{<0><10><50><60>}"))
    view = shown(Augmentation(flip=True, crop=0.5, light=0.4), words, 1)
    assert view.size == photo().size
    assert view.tobytes() != photo().tobytes()
    assert view.getpixel((0, 0)) > view.getpixel((39, 0))
