"""Cut-outs on photos: boxes are where the pixels are, and nothing is asked for that the photo may hold already."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salticid.data.records import Box, CaptionedPhoto
from salticid.data.scenes import COVERED, SIDES, CutOut, Pasted, Scene, compose, read_cutouts
from salticid.errors import DataError, ImageError


def write_cutout(path: Path, text: str | None, color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (30, 20)) -> Path:
    """A full rectangle with five transparent pixels around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGBA", (size[0] + 10, size[1] + 10))
    picture.paste((*color, 255), (5, 5, size[0] + 5, size[1] + 5))
    picture.save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def cutouts(tmp_path: Path) -> list[CutOut]:
    for name in ("apple", "red ball", "kite", "snail", "drum"):
        write_cutout(tmp_path / f"{name}.png", f"A {name}.")
    return read_cutouts(tmp_path)


PHOTO = CaptionedPhoto(Path("photo.jpg"), ("A boy flies a kite.", "Someone on a lawn"))


def test_names_are_read_from_the_texts_beside_the_pictures(tmp_path: Path) -> None:
    write_cutout(tmp_path / "food/apple.png", "A green apple.\nfr.utf8=Une pomme verte.")
    write_cutout(tmp_path / "b.png", "The moon!", size=(20, 40))
    write_cutout(tmp_path / "long.png", "A picture of which very much is said.")
    write_cutout(tmp_path / "sign.png", "H2O")
    write_cutout(tmp_path / "empty.png", "")
    write_cutout(tmp_path / "unnamed.png", None)
    write_cutout(tmp_path / "nothing.png", "A ghost.", size=(0, 0))
    Image.new("RGB", (9, 9)).save(tmp_path / "opaque.png")
    (tmp_path / "opaque.txt").write_text("A wall.")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("A dish.")
    assert [(each.name, each.aspect) for each in read_cutouts(tmp_path)] == [("moon", 0.5), ("green apple", 1.5)]


def test_a_folder_without_cut_outs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no cut-outs: PNG pictures with alpha"):
        read_cutouts(tmp_path)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_box_is_where_the_pixels_are(tmp_path: Path, mode: str, mirrored: bool) -> None:
    path = write_cutout(tmp_path / "a.png", "A tile.")
    with Image.open(path) as opened:
        opened.paste((0, 255, 0, 255), (5, 5, 10, 25))  # the left sixth is green
        opened.save(path)
    scene = Scene((Pasted(path, Box("tile", 0.25, 0.1, 0.3, 0.5, False), mirrored),))
    pixels = np.asarray(scene.of_image(Image.new(mode, (200, 100))))
    rows, columns = np.nonzero(pixels.any(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 10, 109, 59)
    assert (pixels[30, 52, 1] > 200, pixels[30, 107, 1] > 200) == (not mirrored, mirrored)


def test_scenes_are_inside_apart_and_reproducible(cutouts: list[CutOut]) -> None:
    counts = set()
    for seed in range(100):
        scene, record = compose(PHOTO, cutouts, 3, random.Random(seed))
        assert (scene, record) == compose(PHOTO, cutouts, 3, random.Random(seed))
        assert record.path == PHOTO.path
        assert not record.captions
        assert record.objects == tuple(each.box for each in scene.pasted)
        counts.add(len(record.objects))
        for box in record.objects:
            assert 0 <= box.left <= box.right <= 1
            assert 0 <= box.top <= box.top + box.height <= 1
            assert SIDES[0] <= max(box.width, box.height) <= SIDES[1]
            assert box.width / box.height == pytest.approx(1.5)
        for one, other in zip(record.objects, record.objects[1:], strict=False):
            across = min(one.right, other.right) - max(one.left, other.left)
            down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
            assert max(across, 0) * max(down, 0) <= COVERED * min(one.area, other.area) + 1e-9
    assert {1, 2, 3} <= counts


def test_what_the_captions_speak_of_is_not_pasted(cutouts: list[CutOut]) -> None:
    names = {box.category for seed in range(100) for box in compose(PHOTO, cutouts, 5, random.Random(seed))[1].objects}
    assert names == {"apple", "red ball", "snail", "drum"}


def test_a_damaged_cut_out_is_named(tmp_path: Path) -> None:
    path = write_cutout(tmp_path / "a.png", "A tile.", size=(300, 300))
    path.write_bytes(path.read_bytes()[:150])
    scene = Scene((Pasted(path, Box("tile", 0, 0, 0.5, 0.5, False), False),))
    with pytest.raises(ImageError, match=r"a\.png is damaged"):
        scene.of_image(Image.new("RGB", (20, 20)))
