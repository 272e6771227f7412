"""Left and right change places, where they surely name a place."""

from __future__ import annotations

import pytest

from salticid.data.mirror import mirror_words

PAIRS = [
    ("what is on the right side of the lamp", "what is on the left side of the lamp"),
    ("what is to the left of the bed?", "what is to the right of the bed?"),
    ("object left of the door", "object right of the door"),
    ("the left most chair", "the right most chair"),
    ("the leftmost chair", "the rightmost chair"),
    ("top right corner", "top left corner"),
    ("at the bottom left", "at the bottom right"),
    ("the right-hand edge", "the left-hand edge"),
    ("to the righthand side", "to the lefthand side"),
    ("It looks leftwards.", "It looks rightwards."),
    ("a right-handed batter", "a left-handed batter"),
    ("In his Right hand.", "In his Left hand."),
    ("On the RIGHT.", "On the LEFT."),
    ("two dogs, one on the far left and one to the right", "two dogs, one on the far right and one to the left"),
    ("on the wall left and right of the window", "on the wall right and left of the window"),
    ("the two people on the right are sitting", "the two people on the left are sitting"),
]

OTHER_SENSES = [
    "what is right next to the bed",
    "the right answer",
    "on the right track",
    "a man who left the house",
    "how much pizza is left?",
    "turned right side up",
    "turned rightside up",
    "the right of way",
    "is that right?",
    "left or right?",
    "the cup on the left is right behind the plate",
]


@pytest.mark.parametrize(("words", "other"), PAIRS)
def test_places_change(words: str, other: str) -> None:
    assert mirror_words(words) == other
    assert mirror_words(other) == words


@pytest.mark.parametrize("words", OTHER_SENSES)
def test_other_senses_are_told_apart(words: str) -> None:
    assert mirror_words(words) is None


@pytest.mark.parametrize("words", ["", "a dog", "an upright copyright sign", "a brightly lit, cleft rock"])
def test_words_without_a_side_stay(words: str) -> None:
    assert mirror_words(words) == words
