"""Questions that no photo answers, and questions about things that are not there: the answers admit it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from salticid.data.conversation import Turn
from salticid.data.questions.words import MASS, is_plural, listed, with_article

DONT_KNOW = "I don't know."
UNKNOWN: tuple[str, ...] = (
    "What is the name of this person?",
    "What year was this taken?",
    "What is the phone number?",
    "What will happen tomorrow?",
    "Who took this photo?",
    "How old is the man?",
    "What is the dog's name?",
    "What does she think about?",
    "How much did it cost?",
    "What is his job?",
    "Where does this person live?",
    "What is the name of this street?",
    "Which country is this?",
    "What day of the week is it?",
    "What is the date today?",
    "How long have they known each other?",
    "What is her favorite food?",
    "What happened before this photo was taken?",
    "What song is playing?",
    "What does it smell like?",
    "How much does the bag weigh?",
    "What is the password?",
    "What did he say?",
    "What is the temperature?",
    "Why are they here?",
    "What is the capital of this country?",
    "Who owns this house?",
    "What is the email address?",
    "When is her birthday?",
    "What language do they speak?",
    "How many brothers does he have?",
    "What did they eat for breakfast?",
    "Who won the game?",
    "How far is the next town?",
    "Which camera was used?",
    "What is the title of the book he read last?",
    "What is behind the camera?",
    "What is the name of the photographer?",
    "How long will they stay?",
    "What is he dreaming of?",
    "What month was this photo taken?",
    "Where were they yesterday?",
    "What is the price of the ticket?",
    "What school did she go to?",
    "What is the name of the owner?",
)
KEPT: tuple[str, ...] = (
    "What is the name of the woman?",
    "How old is this person?",
    "When was this photo taken?",
    "What city is this?",
    "What is he thinking?",
    "Who is the photographer?",
    "What will they do next week?",
    "How much money does she have?",
    "What is his last name?",
    "What did they do yesterday?",
    "What is the address of this place?",
    "What is her favorite color?",
    "What time did they wake up?",
    "How tall is he in centimeters?",
    "What is the weather going to be tomorrow?",
)
"""Kept for evaluation: never in training data."""

_ABSENT = ("What color is the {}?", "Where is the {}?", "What is the {} made of?", "How big is the {}?", "What is next to the {}?")
_ABSENT_LIVING = ("Where is the {}?", "What is the {} doing?")
_LIVING = frozenset(
    listed("person man woman boy girl child baby animal dog cat horse cow sheep bird elephant bear zebra giraffe monkey goat")
)
_PLACE = frozenset(listed("water ocean lake river pool beach sand snow ice mountain cliff street waterfall kitchen playground wave tunnel"))
_ABSENT_PLURAL = ("What color are the {}?", "Where are the {}?")


def unknown(random_: random.Random, templates: Sequence[str] = UNKNOWN) -> Turn:
    """A question that the photo cannot answer."""
    return Turn(random_.choice(templates), DONT_KNOW)


def absent(thing: str, random_: random.Random) -> Turn:
    """A question about a thing that is clearly not there."""
    if is_plural(thing):
        templates: Sequence[str] = _ABSENT_PLURAL
    elif thing in _LIVING:
        templates = _ABSENT_LIVING
    else:
        templates = _ABSENT[1:2] if thing in _PLACE else _ABSENT
    answer = f"I don't see any {thing}." if thing.split(" ")[-1] in MASS or is_plural(thing) else f"I don't see {with_article(thing)}."
    return Turn(random_.choice(templates).format(thing), answer)
