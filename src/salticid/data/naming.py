"""What people call what they see: the words of a photo's captions, the kinds of its boxes, the things that answers name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from salticid.data.questions.words import listed
from salticid.data.records import BoxedPhoto, CaptionedPhoto, QuestionedPhoto

Record = CaptionedPhoto | BoxedPhoto | QuestionedPhoto
SURE = 2
"""People who must use a word before it counts as fully true; one alone may be mistaken, or the only one who cares."""

# Words that no photo shows.
_GRAMMAR = frozenset(
    listed("""a about across after again against all along also an and another any are around as at away back be been before behind being
    beside between both but by can do does down during each either for from front get getting has have having he her him his how i in
    into is it its itself just left like look looking looks near next no not of off on one onto other others out outside over past right she
    show shown shows side so some something that the their them themselves there they this through to together top toward towards two
    under up use uses using very was were what where which while who with without yes you""")
)


def names(photo: Record) -> list[frozenset[str]]:
    """For each sentence about a photo the words that it may show; kinds of boxes, and things that answers name, count as sure.

    A plural and its singular are one word where an "s" makes the difference.
    """
    if isinstance(photo, QuestionedPhoto):
        return [_things(answer for _, answer in photo.questions)] * SURE
    said = [frozenset(map(_one, re.findall(r"[a-z]{2,}", caption.lower()))) - _GRAMMAR for caption in photo.captions]
    if isinstance(photo, BoxedPhoto):
        said += [_things(box.category for box in photo.objects)] * SURE
    return said


def _things(named: Iterable[str]) -> frozenset[str]:
    """Names as they stand, of several words too; no numbers, no yes and no."""
    parts = {" ".join(part.lower().split()) for name in named for part in name.split(",")}
    return frozenset(_one(part) for part in parts if re.fullmatch(r"[a-z][a-z ]+", part)) - _GRAMMAR


def _one(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def vocabulary(photos: Sequence[Sequence[frozenset[str]]], at_least: int) -> list[str]:
    """Words that `at_least` photos show, the most frequent first."""
    counts = Counter(word for said in photos for word in frozenset().union(*said))
    return [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= at_least]


def shares(said: Sequence[frozenset[str]], index: Mapping[str, int]) -> dict[int, float]:
    """Of each known word that was used, its number and how sure it is: 1 where `SURE` people used it."""
    counts = Counter(index[word] for words in said for word in words if word in index)
    return {number: min(1.0, count / SURE) for number, count in counts.items()}
