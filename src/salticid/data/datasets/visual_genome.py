"""Visual Genome: phrases for regions of photos. Krishna et al., 2017 (arXiv 1602.07332)."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from salticid.data.boxes import ROUNDINGS, Rounding
from salticid.data.conversation import Turn
from salticid.data.datasets.listing import LIST, NUMBER, TEXT, CleanListing, check_row
from salticid.data.datasets.refcoco import box_as_text
from salticid.data.datasets.rows import iterate_rows
from salticid.data.options import check_choice
from salticid.errors import ConfigurationError

PHOTO = {"image_id": (int,), "width": NUMBER, "height": NUMBER, "url": TEXT}
REGION = {"image_id": (int,), "phrase": TEXT, "x": NUMBER, "y": NUMBER, "width": NUMBER, "height": NUMBER}


class VisualGenomeRegions(CleanListing):
    """A phrase in, its region's box out, for regions small enough to be found.

    Reads `region_descriptions.json`, `[{"id": 1, "regions": [{"image_id": 1, "phrase": "...", "x": ..., "y": ..., "width": ...,
    "height": ...}]}]`, and beside it `image_data.json` for the photos' sizes and places (`VG_100K/1.jpg`, `VG_100K_2/2.jpg`).

    Args:
        max_area: regions of this many pixels and more are left out (upstream, after OFA: 16,384).
        rounding: of the boxes, see `encode_box`.
    """

    annotations = "region_descriptions.json"
    keys: ClassVar = {"regions": LIST}

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        clean: bool = True,
        max_area: float = 16384,
        rounding: Rounding = "nearest",
    ) -> None:
        check_choice("rounding", rounding, ROUNDINGS)
        if not isinstance(max_area, NUMBER) or max_area <= 0:
            raise ConfigurationError(f"max_area is a number of pixels above 0, not {max_area!r}")
        self.max_area, self.rounding = max_area, rounding
        self.photos = _photos(Path(folder) / "image_data.json")
        super().__init__(folder, annotations, images, skip_missing, clean)

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        for number, region in enumerate(row["regions"]):
            check_row(region, REGION, number, Path(f"{name}, list 'regions'"))
            width, height = region["width"], region["height"]
            photo = self.photos.get(region["image_id"])
            if photo and width > 0 and height > 0 and width * height < self.max_area:
                box = (region["x"], region["y"], width, height)
                yield [photo[0], region["phrase"], box_as_text(box, photo[1:], self.rounding, f"{name}, region {number}")]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        _, phrase, box = record
        return [Turn(turn.question, box) for turn in self.turn("refer", self.tidy(phrase), box, chance)]


def _photos(path: Path) -> dict[int, tuple[str, float, float]]:
    """File, width and height of each photo by its number."""
    photos = {}
    for number, row in enumerate(iterate_rows(path)):
        check_row(row, PHOTO, number, path)
        photos[row["image_id"]] = ("/".join(row["url"].split("/")[-2:]), row["width"], row["height"])
    return photos
