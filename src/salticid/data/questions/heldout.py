"""Questions for evaluation: yes and no about objects in the way of POPE, and questions that no photo answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from salticid.data.questions.boxes import marked, present
from salticid.data.questions.existence import POPE
from salticid.data.questions.unknown import KEPT
from salticid.data.questions.words import with_article
from salticid.data.records import BoxedPhoto
from salticid.errors import ConfigurationError

KINDS = ("random", "popular", "adversarial")


class Located(Protocol):
    """Any photo record."""

    @property
    def path(self) -> Path: ...


def yes_no_questions(photos: Sequence[BoxedPhoto], kind: str = "random", per_photo: int = 6, seed: int = 0) -> list[tuple[Path, str, str]]:
    """(path, question, "yes" or "no"), as many of each per photo (POPE, Li et al., 2023, section 4).

    Negatives are absent categories: any ("random"), the most frequent of all photos ("popular"), or those that most often
    stand beside what the photo shows ("adversarial"). Photos without an object give none. Raises ConfigurationError for
    another kind.
    """
    if kind not in KINDS:
        raise ConfigurationError(f"Unknown kind of yes/no questions {kind!r}; choose one of {', '.join(KINDS)}.")
    frequency = Counter(category for photo in photos for category in marked(photo))
    together = Counter((one, other) for photo in photos for one in marked(photo) for other in marked(photo) if one != other)
    questions = []
    for photo in photos:
        random_ = random.Random(f"{seed}/{kind}/{photo.path.name}")
        here = present(photo, smallest=0.0)
        lacking = sorted(set(frequency) - set(here))
        random_.shuffle(lacking)
        if kind == "popular":
            lacking.sort(key=lambda category: -frequency[category])
        elif kind == "adversarial":
            lacking.sort(key=lambda category: -sum(together[category, other] for other in here))
        count = min(per_photo // 2, len(here), len(lacking))
        for there, absent_ in zip(random_.sample(here, count), lacking[:count], strict=True):
            questions.append((photo.path, _pope(there), "yes"))
            questions.append((photo.path, _pope(absent_), "no"))
    return questions


def _pope(category: str) -> str:
    """POPE puts an article before every category ("a skis")."""
    noun = with_article(category)
    return POPE.format(f"a {category}" if noun == category else noun)


def unknown_questions(photos: Sequence[Located], per_photo: int = 1, seed: int = 0) -> list[tuple[Path, str]]:
    """(path, question) with questions that no photo answers, from templates that training never shows."""
    return [(photo.path, question) for photo in photos for question in random.Random(f"{seed}/{photo.path.name}").sample(KEPT, per_photo)]
