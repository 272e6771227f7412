"""RefCOCO, RefCOCO+ and RefCOCOg: phrases that tell one object of a photo from all others, and its box. Kazemzadeh et al., 2014."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from salticid.data.boxes import ROUNDINGS, Rounding, encode_box, from_pixels
from salticid.data.conversation import Turn
from salticid.data.datasets.files import read_json
from salticid.data.datasets.listing import LIST, NUMBER, TEXT, CleanListing, check_row
from salticid.data.datasets.plain_pickle import read_plain_pickle
from salticid.data.options import check_choice, check_names
from salticid.errors import DataError, InputError

PHOTO = {"id": (int,), "width": NUMBER, "height": NUMBER}
OBJECT = {"id": (int,), "bbox": LIST}


class RefCoco(CleanListing):
    """A phrase in, its object's box out. The folder is that of one data set, with the authors' two files.

    Args:
        annotations: `instances.json`, photos with their sizes and objects with boxes `[x, y, width, height]` in pixels.
        refs: the list of phrases: `refs(unc).p`, `refs(google).p`, `refs(umd).p` (RefCOCOg), read as plain data alone, or the same in a
            JSON file.
        split: "train", or what else the file holds, such as "val".
        prefix: photos are this and the photo's number in twelve digits, `.jpg`; `""` for COCO's 2017 naming.
        rounding: of the boxes, see `encode_box`.
    """

    annotations = "instances.json"
    images = "../../coco2014/train2014"
    keys: ClassVar = {"ann_id": (int,), "image_id": (int,), "split": TEXT, "sentences": LIST}

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        clean: bool = True,
        refs: str = "refs(unc).p",
        split: str = "train",
        prefix: str = "COCO_train2014_",
        rounding: Rounding = "nearest",
    ) -> None:
        check_choice("rounding", rounding, ROUNDINGS)
        self.refs, self.split, self.prefix, self.rounding = check_names("refs", refs)[0], split, prefix, rounding
        super().__init__(folder, annotations, images, skip_missing, clean)

    def entries(self, path: Path) -> Iterable[Any]:
        """Of each phrase's row of `refs`, what `keep` needs, and the box and photo that it speaks of."""
        photos, objects = _instances(path)
        source = path.parent / self.refs
        refs = read_json(source.parent, source.name) if source.suffix == ".json" else read_plain_pickle(source)
        if not isinstance(refs, list):
            raise DataError(f"{source} holds no list of phrases; fetch it again or check the option 'refs'.")
        for number, ref in enumerate(refs):
            check_row(ref, self.keys, number, source)
            if ref["split"] != self.split:
                continue
            box, size = objects.get(ref["ann_id"]), photos.get(ref["image_id"])
            if box is None or size is None:
                what = f"object {ref['ann_id']}" if box is None else f"photo {ref['image_id']}"
                raise DataError(f"Row {number} of {source} speaks of {what}, which {path} lacks; fetch both of the same data set.")
            yield {**ref, "box": box, "size": size}

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        phrases = [sentence.get("raw") for sentence in row["sentences"] if isinstance(sentence, dict)]
        if not phrases or not all(isinstance(phrase, str) for phrase in phrases):
            raise DataError(f"{self.refs}: 'sentences' of object {row['ann_id']} holds no phrase under 'raw'; fetch the file again.")
        box = box_as_text(row["box"], row["size"], self.rounding, f"Object {row['ann_id']} of {self.files[0]}")
        yield [f"{self.prefix}{row['image_id']:012d}.jpg", phrases, box]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        _, phrases, box = record
        return self.locate(self.tidy(chance.choice(phrases)), box, chance)

    def locate(self, phrase: str, box: str, chance: random.Random) -> Sequence[Turn]:
        """The phrase is asked for, the box is the answer, unchanged."""
        return [Turn(turn.question, box) for turn in self.turn("refer", phrase, box, chance)]


class InvRefCoco(RefCoco):
    """The inverse of `RefCoco`: a box in, a phrase out."""

    def locate(self, phrase: str, box: str, chance: random.Random) -> Sequence[Turn]:
        return self.turn("identify", box, phrase, chance)


def _instances(path: Path) -> tuple[dict[int, tuple[float, float]], dict[int, list[float]]]:
    """(width, height) of each photo, and the box of each object, by their numbers."""
    content = read_json(path.parent, path.name)
    rows = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
    if not all(isinstance(row, list) for row in rows):
        raise DataError(f"{path} holds no lists 'images' and 'annotations'; fetch it again or check the option 'annotations'.")
    photos, objects = {}, {}
    for number, row in enumerate(rows[0] or ()):
        check_row(row, PHOTO, number, path)
        photos[row["id"]] = (row["width"], row["height"])
    for number, row in enumerate(rows[1] or ()):
        check_row(row, OBJECT, number, path)
        objects[row["id"]] = row["bbox"]
    return photos, objects


def box_as_text(box: Sequence[float], size: Sequence[float], rounding: Rounding, name: str) -> str:
    """A box `[x, y, width, height]` on a photo of (width, height) pixels, cut at the photo's edges, as text on the grid.

    Raises:
        DataError: these are not four numbers, or the photo has no pixels; `name` says whose box it is.
    """
    try:
        left, top, width, height = box
        return encode_box(from_pixels((left, top, left + width, top + height), size[0], size[1]), rounding)
    except (InputError, TypeError, ValueError):
        raise DataError(
            f"{name} has no box on its photo: {str(box)[:80]} in {size[0]} x {size[1]} pixels; correct it or fetch it."
        ) from None
