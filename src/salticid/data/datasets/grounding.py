"""Flickr30k with boxes, as MiniGPT-v2 filtered it: descriptions whose phrases are boxed, and boxes for phrases.

The boxes are in the text already, `<p>a dog</p> {<12><30><45><80>}`, so the words are kept as they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from salticid.data.boxes import GRID, parse_boxes
from salticid.data.conversation import Turn
from salticid.data.datasets.listing import TEXT, TEXT_OR_NUMBER, Listing
from salticid.data.tasks import instruction
from salticid.errors import DataError


class FlickrGroundedCaption(Listing):
    """`{"image_id": 1000092795, "grounded_caption": "<p>two men</p> {<1><2><3><4>} stand ..."}`; photos are `<image_id>.jpg`."""

    annotations = "groundedcaption.json"
    images = "flickr30k-images"
    keys: ClassVar = {"image_id": TEXT_OR_NUMBER, "grounded_caption": TEXT}

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        yield [f"{row['image_id']}.jpg", check_boxes(row["grounded_caption"], name)]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return (Turn(instruction("grounding", chance=chance), record[1]),)


class FlickrCaptionToPhrase(Listing):
    """A caption in, its phrases with boxes out: `{"image_id": 1000092795, "caption": "two men stand", "output": "<p>...</p> {...}"}`."""

    annotations = "captiontobbox.json"
    images = "flickr30k-images"
    keys: ClassVar = {"image_id": TEXT_OR_NUMBER, "caption": TEXT, "output": TEXT}

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        yield [f"{row['image_id']}.jpg", row["caption"], check_boxes(row["output"], name)]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return (Turn(instruction("detection", record[1], chance), record[2]),)


class FlickrObjectToPhrase(Listing):
    """A phrase in, the phrase with its boxes out: `{"image_id": 1000092795, "phrase": "two men", "bbox": "{<1><2><3><4>}<delim>{...}"}`."""

    annotations = "phrasetobbox.json"
    images = "flickr30k-images"
    keys: ClassVar = {"image_id": TEXT_OR_NUMBER, "phrase": TEXT, "bbox": TEXT}

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        yield [f"{row['image_id']}.jpg", row["phrase"], check_boxes(row["bbox"], name)]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        _, phrase, boxes = record
        return (Turn(instruction("detection", phrase, chance), f"<p>{phrase}</p> {boxes}"),)


def check_boxes(text: str, name: str) -> str:
    """The text; raises DataError where it holds no box on the grid, which tells another file, or pixels, from the right one."""
    if not parse_boxes(text):
        raise DataError(f"{name} has no box {{<x1><y1><x2><y2>}} on the grid of 0 to {GRID}; it holds {text[:80]!r}. Is it the right file?")
    return text
