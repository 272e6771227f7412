"""Words for a mirrored photo: left and right change places, where they surely name a place."""

from __future__ import annotations

import re
from dataclasses import replace

from salticid.data.conversation import Example, Turn

SIDE = re.compile(r"\b(left|right)(most|hand|wards?|side)?\b", re.IGNORECASE)

_AFTER = re.compile(
    r"[ -](?:hand(?:ed)?|side(?! up)|of(?! way)|corner|edge|end|wall|top|bottom|most|(?:and|or) (?:left|right) (?:of|side))\b",
    re.IGNORECASE,
)
_VERTICAL = re.compile(r"\b(?:top|bottom|upper|lower)[ -]$", re.IGNORECASE)
_TO_THE = re.compile(r"\b(?:to|on|at|from|in|towards?) (?:the|its|his|her|their|your|my) (?:far )?$", re.IGNORECASE)
_NO_NOUN = re.compile(r"\s*(?:$|[.,;:?!)]|(?:of|and|or|is|are|has|have|with|on|at|in|above|below|there)\b)", re.IGNORECASE)


def mirror_words(text: str) -> str | None:
    """The text with sides exchanged; `None` where a "left" or "right" may be no place ("right next to", "he left", "the right key")."""
    found = list(SIDE.finditer(text))
    if not all(_is_a_place(text, side) for side in found):
        return None
    return SIDE.sub(lambda side: _other(side.group(1)) + (side.group(2) or ""), text)


def mirror_example(example: Example) -> Example | None:
    """The example's words, true of its photos when those are mirrored; `None` where `mirror_words` cannot tell."""
    texts = [text for turns in example.conversations for turn in turns for text in (turn.question, turn.answer)]
    words: dict[str, str] = {}
    for text in (*texts, *example.references):
        if (mirrored := mirror_words(text)) is None:
            return None
        words[text] = mirrored
    conversations = tuple(tuple(Turn(words[turn.question], words[turn.answer]) for turn in turns) for turns in example.conversations)
    return replace(example, conversations=conversations, references=tuple(words[text] for text in example.references))


def _is_a_place(text: str, side: re.Match[str]) -> bool:
    before, after = text[: side.start()], text[side.end() :]
    if side.group(2):
        return not after.lower().startswith(" up")
    return bool(_AFTER.match(after) or _VERTICAL.search(before) or (_TO_THE.search(before) and _NO_NOUN.match(after)))


def _other(side: str) -> str:
    other = "right" if side.lower() == "left" else "left"
    return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other
