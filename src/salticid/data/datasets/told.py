"""Boxes that were told by a model, beside a data set that has none: `boxes.json`, the name of each photo's file with its boxes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from salticid.data.boxes import Region
from salticid.data.datasets.files import read_json
from salticid.data.records import Box, BoxedPhoto, CaptionedPhoto
from salticid.errors import DataError

FILE = "boxes.json"
FORM = "[name, left, top, right, bottom]"


def write_told(folder: Path, told: Mapping[str, Sequence[Region]]) -> None:
    """Write the boxes of photos by the names of their files; edges are fractions of the photo's sides."""
    rows = {
        name: [[box.label, *(round(edge, 4) for edge in (box.left, box.top, box.right, box.bottom))] for box in boxes]
        for name, boxes in told.items()
    }
    (folder / FILE).write_text(json.dumps(rows) + "\n", encoding="utf-8")


def with_told(photos: Iterable[CaptionedPhoto], folder: str | os.PathLike[str]) -> list[BoxedPhoto]:
    """Those of the photos that have told boxes.

    Raises:
        DataError: the file is missing or of another form, or has boxes of none of these photos.
    """
    rows = read_json(folder, FILE)
    if not isinstance(rows, dict):
        raise DataError(f"{Path(folder) / FILE} has no boxes by photo; make it again with: salticid data boxes")
    boxed = [BoxedPhoto(photo.path, photo.captions, _boxes(rows[name], name)) for photo in photos if (name := photo.path.name) in rows]
    if not boxed:
        raise DataError(f"{Path(folder) / FILE} has boxes of {len(rows)} photos, of which this data set has none; it is of another one")
    return boxed


def _boxes(rows: object, name: str) -> tuple[Box, ...]:
    try:
        return tuple(
            Box(str(label), float(left), float(top), float(right) - float(left), float(bottom) - float(top), crowd=False)
            for label, left, top, right, bottom in rows  # type: ignore[attr-defined]
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"the boxes of {name} are not all {FORM}; make the file again with: salticid data boxes") from error
