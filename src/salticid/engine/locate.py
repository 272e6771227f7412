"""Where something is on a photo: how a model is asked, and what its answer says in pixels. Loads no torch."""

from __future__ import annotations

from typing import NamedTuple

from salticid.data.boxes import parse_boxes
from salticid.data.tasks import instruction
from salticid.data.templates import get_template
from salticid.errors import InputError

SHOWN = 80
"""Characters of an answer that an error quotes."""


class PixelBox(NamedTuple):
    """A box in pixels from the photo's upper left corner; `right` and `bottom` are the first column and row beyond it."""

    left: int
    top: int
    right: int
    bottom: int


def locating_question(template: str, phrase: str) -> str:
    """How models of a template are asked for boxes: `[refer] give me the location of ...` (TinyGPT-V's stage 4, after MiniGPT-v2).

    Raises:
        InputError: no phrase, or a template without tasks.
    """
    if not get_template(template).tasks:
        raise InputError(
            f"this model was not trained to locate: its template {template!r} has no tasks; use one that was, such as TinyGPT-V's stage 4"
        )
    return instruction("refer", check_phrase(phrase))


def check_phrase(phrase: str) -> str:
    """The phrase on one line; raises `InputError` where there is none."""
    if not isinstance(phrase, str):
        raise InputError(f"the phrase is {type(phrase).__name__}, not a string; photos come first: locate(photo, phrase)")
    words = " ".join(phrase.split())
    if not words:
        raise InputError("the phrase is empty; name what to locate, such as 'the red ball'")
    return words


def boxes_in(answer: str, width: int, height: int) -> list[PixelBox]:
    """Every box of an answer on a photo of `width` x `height` pixels; raises `InputError` where there is none."""
    boxes = [PixelBox(*region.pixels(width, height)) for region in parse_boxes(answer)]
    if not boxes:
        words = " ".join(answer.split())
        shown = words if len(words) <= SHOWN else words[:SHOWN].rstrip() + "..."
        raise InputError(f"answered {shown!r}, no box: this model was not trained to locate")
    return boxes
