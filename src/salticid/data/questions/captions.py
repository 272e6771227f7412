"""Asks for a caption, and tidies what people wrote."""

from __future__ import annotations

import random
import re

from salticid.data.conversation import Turn

DESCRIBE = "Describe the photo."
PROMPTS = ("What is in this photo?", "Caption this photo.", "What is happening here?", "Write a caption.")


def tidy(caption: str) -> str:
    """One sentence: single spaces, no stray quotes, a capital first letter and one final full stop."""
    text = re.sub(r"[\"`“”]|''|(?<!\w)'(?!\w)", " ", caption)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+(?=[,.;:!?)])|(?<=\()\s+|\s+(?='s\b)|\s+(?=n't\b)", "", text)
    text = re.sub(r"\s+-\s+", "-" if " - " not in caption else ", ", text)
    text = re.sub(r",\s*,+", ",", text)
    text = re.sub(r"^[\s.,;:!?'-]+|[\s.,;:!?'-]+$", "", text)
    text = re.sub(r"(?<=[a-z])\.(?=\s*[a-z])", ",", text)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def caption_turn(caption: str, random_: random.Random) -> Turn | None:
    """A tidy caption behind a prompt, about half the time the canonical one; None for a caption of fewer than three words."""
    text = tidy(caption)
    if len(text.split()) < 3:
        return None
    return Turn(DESCRIBE if random_.random() < 0.5 else random_.choice(PROMPTS), text)
