"""Words of captions, kinds of boxes and things of answers, as labels of a photo."""

from __future__ import annotations

from pathlib import Path

from salticid.data.naming import names, shares, vocabulary
from salticid.data.records import Box, BoxedPhoto, CaptionedPhoto, QuestionedPhoto

PHOTO = Path("photo")


def test_captions_give_the_words_that_a_photo_may_show_without_their_grammar() -> None:
    said = names(CaptionedPhoto(PHOTO, ("Two dogs run across the grass .", "A dog runs on grass with its bus pass")))
    assert said == [frozenset({"dog", "run", "grass"}), frozenset({"dog", "run", "grass", "bus", "pass"})]


def test_kinds_of_boxes_and_things_of_answers_are_sure_and_keep_their_spaces() -> None:
    box = Box("traffic light", 0, 0, 0.5, 0.5, crowd=False)
    index = {"traffic light": 0, "car": 1, "night stand": 2, "lamp": 3, "red": 4}
    boxed = names(BoxedPhoto(PHOTO, ("a red car",), (box,)))
    assert shares(boxed, index) == {0: 1.0, 1: 0.5, 4: 0.5}
    asked = names(QuestionedPhoto(PHOTO, (("what is beside the bed?", "night stand, lamp"), ("how many?", "3"), ("is it?", "yes"))))
    assert shares(asked, index) == {2: 1.0, 3: 1.0}
    assert all(words == {"night stand", "lamp"} for words in asked)


def test_a_word_is_as_sure_as_people_agree() -> None:
    said = names(CaptionedPhoto(PHOTO, ("a dog", "a dog and a ball", "two dogs")))
    assert shares(said, {"dog": 0, "ball": 1, "cat": 2}) == {0: 1.0, 1: 0.5}


def test_the_vocabulary_counts_photos_not_mentions() -> None:
    photos = [names(CaptionedPhoto(PHOTO, captions)) for captions in (("a dog", "a dog", "a dog"), ("cat ball",), ("the cat",))]
    assert vocabulary(photos, 1) == ["cat", "ball", "dog"]
    assert vocabulary(photos, 2) == ["cat"]
