"""Questions that boxes answer: counts, lists, sides, positions and sizes."""

from __future__ import annotations

import random
from itertools import permutations

from salticid.data.conversation import Turn
from salticid.data.questions.words import MASS, PLURAL, is_plural, plural_of
from salticid.data.records import Box, BoxedPhoto

VISIBLE = 0.003
"""Least share of the photo that one object of a category must cover before its presence is asked for."""


def present(photo: BoxedPhoto, smallest: float = VISIBLE) -> list[str]:
    """Categories with an object of at least `smallest` of the photo, sorted by name."""
    return sorted({box.category for box in photo.objects if box.area >= smallest})


def marked(photo: BoxedPhoto) -> frozenset[str]:
    """Every category with an object of any size: never to be called absent."""
    return frozenset(box.category for box in photo.objects)


def _countable(photo: BoxedPhoto) -> dict[str, list[Box]]:
    groups: dict[str, list[Box]] = {}
    for box in photo.objects:
        groups.setdefault(box.category, []).append(box)
    return {category: boxes for category, boxes in sorted(groups.items()) if not any(box.crowd for box in boxes)}


def count_turns(photo: BoxedPhoto, most: int = 6) -> list[Turn]:
    """How many cups are there? Up to `most` objects, none of them tiny and none a crowd."""
    return [
        Turn(f"How many {plural_of(category)} are there?", str(len(boxes)))
        for category, boxes in _countable(photo).items()
        if len(boxes) <= most and min(box.area for box in boxes) >= VISIBLE / 2 and category not in MASS | PLURAL
    ]


def zero_turn(category: str) -> Turn:
    """How many cups are there? "0", for a category that is absent."""
    return Turn(f"How many {plural_of(category)} are there?", "0")


def list_turns(photo: BoxedPhoto, random_: random.Random) -> list[Turn]:
    """What objects are in the photo? The two to five categories that cover most, the largest first."""
    area: dict[str, float] = {}
    for box in photo.objects:
        area[box.category] = max(area.get(box.category, 0.0), box.area)
    largest = [category for category, share in sorted(area.items(), key=lambda item: (-item[1], item[0])) if share >= 0.01]
    if len(largest) < 2:
        return []
    question = random_.choice(("What objects are in the photo?", "Which objects do you see?", "List the objects in the photo."))
    return [Turn(question, ", ".join(largest[:5]))]


def biggest_turns(photo: BoxedPhoto) -> list[Turn]:
    """What is the biggest object? Where it is one and half as large again as any of another category."""
    boxes = sorted((box for box in photo.objects if not box.crowd), key=lambda box: -box.area)
    if not boxes or boxes[0].area < 0.08:
        return []
    rivals = [box.area for box in photo.objects if box.category != boxes[0].category]
    if rivals and boxes[0].area < 1.5 * max(rivals):
        return []
    return [Turn("What is the biggest object in the photo?", boxes[0].category)]


def _single(photo: BoxedPhoto) -> list[Box]:
    return [boxes[0] for boxes in _countable(photo).values() if len(boxes) == 1 and boxes[0].area >= 2 * VISIBLE]


def side_turns(photo: BoxedPhoto, random_: random.Random) -> list[Turn]:
    """Is the dog to the left of the person? For two single objects whose boxes share no column; "yes" and "no" alike often."""
    singles = _single(photo)
    turns = []
    for one, other in permutations(singles, 2):
        if one.right <= other.left:
            first, second, there = (one, other, True) if random_.random() < 0.5 else (other, one, False)
            side = random_.choice(("left", "right"))
            if side == "right":
                first, second = second, first
            verb = "Are" if is_plural(first.category) else "Is"
            turns.append(Turn(f"{verb} the {first.category} to the {side} of the {second.category}?", "yes" if there else "no"))
    for box in singles:
        for side in ("left", "right"):
            beside = {o.category for o in photo.objects if (o.right <= box.left if side == "left" else o.left >= box.right)}
            unclear = any(o is not box and o.left < box.right and o.right > box.left for o in photo.objects)
            if len(beside) == 1 and not unclear:
                turns.append(Turn(f"What is to the {side} of the {box.category}?", next(iter(beside))))
    return turns


def position_turns(photo: BoxedPhoto) -> list[Turn]:
    """Where is the dog? By the third of the photo that holds the box's centre, where it is clear of a third's edge."""
    turns = []
    for box in _single(photo):
        if min(abs(box.center - 1 / 3), abs(box.center - 2 / 3)) < 0.04 or box.width > 0.6:
            continue
        answer = "on the left" if box.center < 1 / 3 else "on the right" if box.center > 2 / 3 else "in the middle"
        verb = "are" if is_plural(box.category) else "is"
        turns.append(Turn(f"Where {verb} the {box.category}?", answer))
    return turns
