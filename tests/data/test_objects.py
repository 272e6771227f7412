"""Objects cut out of photos with boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salticid.data.objects import COVERED, cut_out, write_objects
from salticid.data.records import Box, BoxedPhoto, common_area
from salticid.data.scenes import read_cutouts
from salticid.errors import DataError

CAT = Box("cat", 0.5, 0.2, 0.4, 0.5, crowd=False)


@pytest.fixture
def photo(tmp_path: Path) -> Image.Image:
    """Grey, and red where the cat is."""
    photo = Image.new("RGB", (200, 200), (90, 90, 90))
    photo.paste((255, 0, 0), (100, 40, 180, 140))
    photo.save(tmp_path / "photo.png")
    return photo


def test_the_oval_fills_the_box_with_what_was_in_it(photo: Image.Image) -> None:
    picture = cut_out(photo, CAT)
    pixels = np.asarray(picture)
    assert picture.size == (80, 100)
    assert picture.getchannel("A").getbbox() == (0, 0, 80, 100)
    assert (pixels[..., :3] == (255, 0, 0)).all()
    assert pixels[50, 40, 3] == 255
    assert pixels[0, 0, 3] == pixels[-1, -1, 3] == 0
    assert 0 < pixels[50, 0, 3] < 255


def test_what_is_free_and_large_is_written(photo: Image.Image, tmp_path: Path) -> None:
    objects = (
        CAT,
        Box("person", 0.0, 0.0, 0.3, 0.3, crowd=False),
        Box("sheep", 0.0, 0.5, 0.3, 0.3, crowd=True),
        Box("mouse", 0.2, 0.9, 0.1, 0.1, crowd=False),
        Box("table", 0.0, 0.4, 0.4, 0.6, crowd=False),
        Box("plate", 0.1, 0.5, 0.2, 0.4, crowd=False),
    )
    assert common_area(objects[4], objects[5]) > COVERED * objects[5].area
    out = tmp_path / "out"
    out.mkdir()
    boxed = BoxedPhoto(tmp_path / "photo.png", (), objects)
    # The plate lies on the table and the crowd on both; of the table less than the limit is covered by either.
    assert write_objects([boxed, BoxedPhoto(tmp_path / "missing.png", (), ())], out, Image.open) == 2
    assert [(cutout.name, cutout.aspect) for cutout in read_cutouts(out)] == [("cat", 0.8), ("table", 80 / 120)]
    with pytest.raises(DataError, match="stands free"):
        write_objects([boxed], out, Image.open, left_out=("cat", "table", "person"))
