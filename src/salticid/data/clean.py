"""The wording that TinyGPT-V's data sets give to captions, questions and short answers (upstream's `blip_caption`, after BLIP)."""

from __future__ import annotations

import re

MAX_WORDS = 50

_DROPPED = re.compile(r'[.!"()*#:;~]')
_GAPS = re.compile(r"\s{2,}")


def clean(text: str, max_words: int = MAX_WORDS) -> str:
    """The text in lower case, without `.!"()*#:;~`, gaps closed, and cut behind `max_words` words; commas and question marks stay."""
    spaced = _GAPS.sub(" ", _DROPPED.sub(" ", text.lower()))
    return " ".join(spaced.rstrip("\n").strip(" ").split(" ")[:max_words])
