"""Asks whether a thing is in the photo."""

from __future__ import annotations

import random
from collections.abc import Sequence

from salticid.data.conversation import Turn
from salticid.data.questions.words import MASS, is_plural, plural_of, with_article

POPE = "Is there {} in the image?"
SINGULAR = (
    POPE,
    "Is there {} in the photo?",
    "Is there {} in this picture?",
    "Do you see {}?",
    "Can you see {} in the photo?",
    "Does the photo show {}?",
)
PLURAL = ("Are there any {} in the photo?", "Are there any {} in the image?", "Do you see any {}?")
MASSES = ("Is there any {} in the photo?", "Is there {} in the image?", "Do you see any {}?", "Does the photo show {}?")


def exists(thing: str, there: bool, random_: random.Random) -> Turn:
    """ "Is there a dog in the photo?" in one of several phrasings, with "yes" or "no"."""
    if thing.split(" ")[-1] in MASS:
        question = random_.choice(MASSES).format(thing)
    elif is_plural(thing) or random_.random() < 0.2:
        question = random_.choice(PLURAL).format(plural_of(thing))
    else:
        question = random_.choice((POPE, *SINGULAR)).format(with_article(thing))
    return Turn(question, "yes" if there else "no")


def exist_all(drawn: Sequence[tuple[str, bool]], random_: random.Random) -> list[Turn]:
    """One question for each drawn thing, no two alike: a thing that comes twice is asked for in other words."""
    turns: dict[str, Turn] = {}
    for thing, there in drawn:
        for _ in range(8):
            turn = exists(thing, there, random_)
            if turn.question not in turns:
                turns[turn.question] = turn
                break
    return list(turns.values())
