"""Boxes as text: `{<x1><y1><x2><y2>}` on a grid of 0 to 100, from left to right and from top to bottom.

Source: MiniGPT-v2 (arXiv 2310.09478, section 3.2), whose format TinyGPT-V's stage 4 uses. A phrase stands before its boxes as
`<p>phrase</p>`, and several boxes of one phrase are joined by `<delim>`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from salticid.errors import ConfigurationError, InputError

GRID = 100
JOINT = "<delim>"
Rounding = Literal["nearest", "down"]
ROUNDINGS = {"nearest": lambda value: math.floor(value + 0.5), "down": math.floor}

_NUMBER = r"\s*<\s*(-?\d+(?:\.\d+)?)\s*>"
# A brace may be lacking: a small model forgets it more often than a number.
_BOX = re.compile(r"\{?" + _NUMBER * 4 + r"\s*\}?")
_PHRASE = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_BETWEEN = re.compile(rf"\s*(?:{re.escape(JOINT)}\s*)?")


@dataclass(frozen=True, slots=True)
class Region:
    """A box on a photo. Edges are fractions of the photo's sides, 0 to 1, with left <= right and top <= bottom; the label may be empty."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) on a photo of `width` x `height` pixels, to the nearest pixel edge.

        Raises:
            InputError: the photo has no pixels.
        """
        if width < 1 or height < 1:
            raise InputError(f"a photo of {width} x {height} pixels has no place for a box")
        return round(self.left * width), round(self.top * height), round(self.right * width), round(self.bottom * height)


def from_pixels(box: Sequence[float], width: float, height: float, label: str = "") -> Region:
    """A region from (left, top, right, bottom) in pixels; what lies outside the photo is cut off, corners are put in order.

    Raises:
        InputError: there are not four numbers, one is not finite, or the photo has no pixels.
    """
    if len(box) != 4 or not all(math.isfinite(edge) for edge in box):
        raise InputError(f"a box is four numbers, left, top, right and bottom; got {tuple(box)}")
    if width <= 0 or height <= 0:
        raise InputError(f"a photo of {width} x {height} pixels has no place for a box")
    return _clamped(box[0] / width, box[1] / height, box[2] / width, box[3] / height, label)


def encode_box(region: Region, rounding: Rounding = "nearest") -> str:
    """`{<x1><y1><x2><y2>}`, without the label.

    Args:
        rounding: "nearest" errs by half a cell at most; "down" is what upstream's data sets do.

    Raises:
        ConfigurationError: an unknown rounding.
    """
    if rounding not in ROUNDINGS:
        raise ConfigurationError(f"unknown rounding {rounding!r}; known: {', '.join(ROUNDINGS)}")
    # Six decimals, so that a fraction of 0.29 is cell 29 and not 28 when rounded down.
    cells = (ROUNDINGS[rounding](round(edge * GRID, 6)) for edge in (region.left, region.top, region.right, region.bottom))
    return "{" + "".join(f"<{cell}>" for cell in cells) + "}"


def encode_boxes(label: str, regions: Sequence[Region], rounding: Rounding = "nearest") -> str:
    """`<p>label</p> {...}<delim>{...}`: a phrase and all its boxes."""
    return f"<p>{label}</p> " + JOINT.join(encode_box(region, rounding) for region in regions)


def parse_boxes(text: str) -> list[Region]:
    """All boxes in a text, in order, each with the phrase that stands before it.

    Numbers beyond the grid are clamped to it and corners in the wrong order are exchanged. What is not four numbers in angle brackets
    is no box: it is skipped, and a text without any gives an empty list.
    """
    phrases = [(match.end(), match[1].strip()) for match in _PHRASE.finditer(text)]
    regions = []
    label, last_end = "", -1
    for match in _BOX.finditer(text):
        before = [(end, phrase) for end, phrase in phrases if end <= match.start()]
        nearest = max(before, default=(-1, ""))
        adjoining = nearest[0] >= 0 and _BETWEEN.fullmatch(text, nearest[0], match.start())
        following = last_end >= 0 and _BETWEEN.fullmatch(text, last_end, match.start())
        if adjoining:
            label = nearest[1]
        elif not following:
            label = ""
        last_end = match.end()
        x1, y1, x2, y2 = (float(number) / GRID for number in match.groups())
        regions.append(_clamped(x1, y1, x2, y2, label))
    return regions


def _clamped(x1: float, y1: float, x2: float, y2: float, label: str) -> Region:
    left, right = sorted(min(max(edge, 0.0), 1.0) for edge in (x1, x2))
    top, bottom = sorted(min(max(edge, 0.0), 1.0) for edge in (y1, y2))
    return Region(left, top, right, bottom, label)
