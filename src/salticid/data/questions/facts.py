"""Questions whose answers captions state outright: colours, counts, actions, places and subjects.

Each writer returns every question that it can vouch for, and none where the captions disagree.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from salticid.data.conversation import Turn
from salticid.data.questions.captions import tidy
from salticid.data.questions.mentions import Noun, nouns_in, words_of
from salticid.data.questions.words import COLOURS, NUMBERS, THINGS, is_plural, listed, plural_of

_COLOURED = frozenset(
    listed(
        "shirt jacket sweater dress skirt pants shorts swimsuit wetsuit vest uniform hat helmet dog cat horse cow bird car truck bus "
        "bicycle "
        "motorcycle boat ball frisbee kite umbrella backpack bag couch chair bench surfboard snowboard skateboard balloon collar airplane "
        "train building wall flower toy tie blanket scarf tent slide kayak"
    )
)
_ANIMALS = frozenset(thing for thing, entry in THINGS.items() if "animal" in entry.kinds.split())
_PEOPLE = frozenset(thing for thing, entry in THINGS.items() if "person" in entry.kinds.split()) | {"person"}
_MANY = frozenset(
    listed(
        "several many some few group groups crowd lots bunch others other another team couple pair numerous multiple various family "
        "audience "
        "people's together pack each onlookers spectators someone person"
    )
)
_STATES = frozenset(
    listed("wearing being having including sitting-on missing seeing looking-like king ring wing swing string building thing")
)
_PLACES = listed(
    "beach field grass street water park pool snow ocean sand road sidewalk lake river woods forest couch bed bench table room kitchen "
    "playground mountain hill yard backyard lawn city stage restaurant lobby garden track court ice stairs path sea desert gym "
    "bathroom store train bus boat car dirt trail pond cliff bridge pier dock porch market subway rock wall"
)
_INDOORS = frozenset(
    listed("indoors kitchen bedroom bathroom couch sofa bed carpet restaurant office classroom hallway lobby mall auditorium")
)
_OUTDOORS = frozenset(
    listed(
        "outdoors outside beach ocean sea lake river forest woods mountain mountains cliff field street sidewalk snow snowy hill sky grass "
        "backyard yard desert surfing trail sunset road lawn"
    )
)
_NOT_INDOORS = frozenset(listed("room inside indoor store shop bar stage house home bed chair floor table court rink arena"))


def colour_questions(captions: Sequence[str]) -> list[Turn]:
    """What color is the shirt? Only where all captions that give that thing a colour give the same one, and two name the thing."""
    colours: dict[str, set[str]] = {}
    several: set[str] = set()
    votes: Counter[str] = Counter()
    for caption in captions:
        words = words_of(caption)
        here = Counter(noun.thing for noun in nouns_in(words))
        votes.update(here.keys())
        for noun in nouns_in(words):
            if noun.thing not in _COLOURED:
                continue
            if (noun.plural and not is_plural(noun.thing)) or here[noun.thing] > 1:
                several.add(noun.thing)
            before = words[max(noun.start - 4, 0) : noun.start]
            if before and before[-1] in COLOURS and noun.sure:
                mixed = sum(word in COLOURS for word in before) > 1 or "and" in before[-3:] or before[-2:-1] in (["dark"], ["light"])
                colours.setdefault(noun.thing, set()).add("?" if mixed else COLOURS[before[-1]])
            elif any(
                word in COLOURS or word in ("colored", "striped", "plaid", "colorful", "spotted", "blond", "blonde") for word in before
            ):
                colours.setdefault(noun.thing, set()).add("?")
    turns = []
    for thing, found in sorted(colours.items()):
        if thing in several or votes[thing] < 2 or len(found) != 1 or "?" in found:
            continue
        turns.append(Turn(f"What color {'are' if is_plural(thing) else 'is'} the {thing}?", next(iter(found))))
    return turns


def count_questions(captions: Sequence[str]) -> list[Turn]:
    """How many dogs are there? Only where at least three captions count a thing and all of them say the same."""
    counts: dict[str, list[int | None]] = {}
    for caption in captions:
        words = words_of(caption)
        here: dict[str, list[int | None]] = {}
        for noun in nouns_in(words):
            group = "person" if noun.thing in _PEOPLE else noun.thing
            if group != "person" and group not in _ANIMALS:
                continue
            here.setdefault(group, []).append(_number_of(words, noun))
        for group, numbers in here.items():
            vague = any(word in _MANY for word in words) or len(set(numbers)) != len(numbers) or len(numbers) > 1
            counts.setdefault(group, []).append(None if vague else numbers[0])
    turns = []
    for group, numbers in sorted(counts.items()):
        if len(numbers) < 4 or None in numbers or len(set(numbers)) != 1:
            continue
        question = "How many people are there?" if group == "person" else f"How many {plural_of(group)} are there?"
        turns.append(Turn(question, str(numbers[0])))
    return turns


def _number_of(words: Sequence[str], noun: Noun) -> int | None:
    if not noun.sure:
        return None
    before = words[max(noun.start - 3, 0) : noun.start]
    if not noun.plural:
        return 1 if {"a", "an", "the", "one"} & set(before) or not before else None
    found = [NUMBERS[word] for word in before if word in NUMBERS]
    return found[0] if len(found) == 1 else None


def action_questions(captions: Sequence[str]) -> list[Turn]:
    """What is the dog doing? The words from the -ing form on, where a caption's subject is followed by one."""
    subjects = [subject for caption in captions if (subject := _subject_of(words_of(caption)))]
    actors = {noun.thing for noun in subjects}
    if len(actors) != 1 or len({noun.plural for noun in subjects}) != 1:
        return []
    turns = []
    for caption in captions:
        words = re.findall(r"[a-z0-9'-]+|,", tidy(caption).lower().rstrip("."))
        subject = _subject_of(words)
        if subject is None or subject.thing not in THINGS:
            continue
        answer = _action_after(words, subject.stop)
        if answer:
            name = plural_of(subject.thing) if subject.plural else subject.thing
            turns.append(Turn(f"What {'are' if subject.plural else 'is'} the {name} doing?", answer))
    return turns


def _subject_of(words: Sequence[str]) -> Noun | None:
    """The noun at a caption's start, behind an article and adjectives; None where that is not plain."""
    for noun in nouns_in(words):
        group = noun.thing in _ANIMALS or noun.thing in _PEOPLE
        if not noun.sure or not group or noun.start > 4:
            return None
        head = words[: noun.start]
        if (head and head[0] not in {"a", "an", "the", "one", *NUMBERS}) or set(head) & {"and", "of", "with", "in", ",", "'s", "is"}:
            return None
        return None if words[noun.stop : noun.stop + 1] in (["and"], [","], ["'s"]) else noun
    return None


def _action_after(words: Sequence[str], start: int) -> str | None:
    rest = list(words[start:])
    if rest[:1] in (["is"], ["are"]):
        rest = rest[1:]
    elif rest[:1] in (["in"], ["with"], ["wearing"]):
        verb = next((place for place, word in enumerate(rest[:8]) if word in ("is", "are")), None)
        if verb is None or any(noun.thing in _PEOPLE | _ANIMALS for noun in nouns_in(rest[:verb])):
            return None
        rest = rest[verb + 1 :]
    if not rest or not rest[0].endswith("ing") or rest[0] in _STATES or len(rest[0]) < 5:
        return None
    for place, word in enumerate(rest):
        if place and word in (",", "while", "as", "and", "wearing", "with", "whilst", "that", "who", "which"):
            rest = rest[:place] if word != "and" else (rest[:place] if place > 2 else rest)
            break
    if len(rest) > 8:
        verbs = [place for place, word in enumerate(rest[:9]) if place > 2 and word.endswith("ing") and word not in _STATES]
        cut = verbs[:1] or [
            place for place, word in enumerate(rest[:8]) if place > 2 and word in ("in", "on", "at", "near", "through", "by", "for", "to")
        ]
        rest = rest[: cut[-1]] if cut else []
    bad_end = {
        "a",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "and",
        "an",
        "his",
        "her",
        "its",
        "with",
        "front",
        "next",
        "up",
        "by",
        "is",
        "for",
        "it",
    }
    while rest and rest[-1] in bad_end:
        rest.pop()
    return " ".join(rest) if rest else None


def place_questions(captions: Sequence[str]) -> list[Turn]:
    """Where is the dog? The phrase of place at a caption's end."""
    turns = []
    places = "|".join(_PLACES)
    for caption in captions:
        text = " ".join(re.findall(r"[a-z0-9'-]+", tidy(caption).lower()))
        found = re.search(
            rf" ((?:in|on|at|near|by|beside) (?:(?:a|an|the) )(?:[a-z]+y |swimming |city |busy |green |wet |tennis )?(?:{places}))$", text
        )
        if not found:
            continue
        subject = _subject_of(text.split())
        answer = found.group(1)
        if subject is not None and text[: found.start()].count(" and ") == 0:
            name = plural_of(subject.thing) if subject.plural else subject.thing
            turns.append(Turn(f"Where {'are' if subject.plural else 'is'} the {name}?", answer))
        turns.append(Turn("Where is this?", answer))
    return turns


def subject_questions(captions: Sequence[str]) -> list[Turn]:
    """What animal is this? Who is in the photo? Where all captions that name an animal or a person name the same."""
    animals: Counter[str] = Counter()
    people: Counter[tuple[str, str]] = Counter()
    other = 0
    for caption in captions:
        words = words_of(caption)
        nouns = list(nouns_in(words))
        animals.update({noun.thing for noun in nouns if noun.thing in _ANIMALS and noun.sure})
        found = [noun for noun in nouns if noun.thing in _PEOPLE]
        other += any(word in _MANY for word in words) or len(found) != 1 or found[0].thing == "person"
        if len(found) == 1 and found[0].sure and (number := _number_of(words, found[0])):
            text = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five"}[number]
            people[(text, plural_of(found[0].thing) if found[0].plural else found[0].thing)] += 1
    turns = []
    if len(animals) == 1:
        animal, votes = next(iter(animals.items()))
        if votes >= 2:
            turns.append(Turn("What animal is this?", animal))
            turns.append(Turn("What kind of animal is in the photo?", animal))
    if len(people) == 1 and sum(people.values()) >= 3 and not other:
        turns.append(Turn("Who is in the photo?", " ".join(next(iter(people)))))
    return turns


def indoors_questions(captions: Sequence[str]) -> list[Turn]:
    """Indoors or outdoors? Only where the captions' places are all of one kind."""
    words = {word for caption in captions for word in words_of(caption)}
    inside, outside = words & _INDOORS, words & _OUTDOORS
    if bool(inside) == bool(outside) or (outside and words & _NOT_INDOORS):
        return []
    if sum(bool(set(words_of(caption)) & (inside or outside)) for caption in captions) < 2:
        return []
    answer = "indoors" if inside else "outdoors"
    return [
        Turn("Was this photo taken indoors or outdoors?", answer),
        Turn("Is this indoors or outdoors?", answer),
        Turn("Is this photo taken outdoors?", "yes" if outside else "no"),
        Turn("Is this indoors?", "no" if outside else "yes"),
    ]


_FACTS: tuple[tuple[Callable[[Sequence[str]], list[Turn]], float, dict[str, float]], ...] = (
    (colour_questions, 1.0, {}),
    (count_questions, 1.0, {"1": 0.15}),
    (action_questions, 1.0, {}),
    (place_questions, 0.7, {}),
    (subject_questions, 0.5, {"dog": 0.25}),
    (indoors_questions, 0.8, {"outdoors": 0.08}),
)
"""Writer, weight, and the share that is kept of photos whose first answer would crowd out the others."""


def fact_turn(captions: Sequence[str], random_: random.Random) -> Turn | None:
    """One question about what the captions state, of a kind drawn by weight; None where they state nothing usable."""
    kinds, weights = [], []
    for writer, weight, kept in _FACTS:
        turns = writer(captions)
        if turns and random_.random() < kept.get(turns[0].answer, 1.0):
            kinds.append(turns)
            weights.append(weight)
    return random_.choice(random_.choices(kinds, weights)[0]) if kinds else None
