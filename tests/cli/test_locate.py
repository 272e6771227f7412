from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

BOX = "{<20><25><60><75>}"
Say = Callable[[str], list[Any]]


@pytest.fixture
def locate(run: Any, tiny_tasks_folder: Path) -> Any:
    return lambda *arguments, **options: run("locate", *arguments, "--model", tiny_tasks_folder, **options)


def test_boxes_are_printed_in_pixels(locate: Any, say: Say, photos: SimpleNamespace) -> None:
    asked = say(f"{BOX}<delim>{{<0><0><100><100>}}")
    assert locate(photos.one, "the red ball") == (0, "10\t10\t30\t30\n0\t0\t50\t40\n", "")
    assert "[refer] give me the location of the red ball" in asked[0]
    assert locate("-", "the red ball", stdin=photos.one.read_bytes()).out == "10\t10\t30\t30\n0\t0\t50\t40\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_the_boxes_are_drawn_at_the_photos_own_size(locate: Any, say: Say, photos: SimpleNamespace, tmp_path: Path, suffix: str) -> None:
    say(BOX)
    out = tmp_path / f"boxed{suffix}"
    assert locate(photos.two, "ball", "--out", out).code == 0
    with Image.open(out) as drawn, Image.open(photos.two) as before:
        assert drawn.size == before.size
        assert drawn.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")
        if suffix == ".png":
            changed = np.argwhere((np.asarray(drawn) != np.asarray(before)).any(-1))
            bottom = changed[changed[:, 0] == changed[:, 0].max()]
            assert (bottom.min(0).tolist(), bottom.max(0).tolist()) == ([29, 10], [29, 29])
    assert oct(out.stat().st_mode)[-3:] == "644"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["one.jpg", "two.png", out.name])


def test_a_turned_photo_is_drawn_upright(locate: Any, say: Say, tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (60, 30), "grey").save(tmp_path / "turned.png", exif=tags)
    say("{<0><50><100><100>}")
    assert locate(tmp_path / "turned.png", "floor", "--out", tmp_path / "boxed.png").out == "0\t30\t30\t60\n"
    with Image.open(tmp_path / "boxed.png") as drawn:
        assert drawn.size == (30, 60)
        assert drawn.getpixel((0, 59)) != drawn.getpixel((0, 5)) == (128, 128, 128)


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3000, 2000)])
def test_photos_of_any_size(locate: Any, say: Say, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "photo.png")
    say("{<0><0><100><100>}")
    result = locate(tmp_path / "photo.png", "all of it", "--out", tmp_path / "boxed.png", "--json")
    assert json.loads(result.out)["boxes"] == [[0, 0, *size]]
    with Image.open(tmp_path / "boxed.png") as drawn:
        assert drawn.size == size


def test_json_for_programs(locate: Any, say: Say, photos: SimpleNamespace, tiny_tasks_folder: Path) -> None:
    say(BOX)
    assert json.loads(locate(photos.one, "the  red ball", "--json").out) == {
        "photo": str(photos.one),
        "phrase": "the red ball",
        "model": str(tiny_tasks_folder),
        "width": 50,
        "height": 40,
        "boxes": [[10, 10, 30, 30]],
        "out": None,
    }


def test_models_that_cannot_locate(
    run: Any, locate: Any, say: Say, one_clear_line: Any, photos: SimpleNamespace, tmp_path: Path, tiny_model_folder: Path
) -> None:
    say("a dog")
    out = tmp_path / "boxed.png"
    one_clear_line(locate(photos.one, "ball", "--out", out), 2, "answered 'a dog', no box: this model was not trained to locate")
    one_clear_line(run("locate", photos.one, "ball", "--out", out, "--model", tiny_model_folder), 2, "its template 'nano' has no tasks")
    assert not out.exists()


def test_bad_input_is_refused_before_a_model_is_loaded(run: Any, one_clear_line: Any, photos: SimpleNamespace, tmp_path: Path) -> None:
    def refused(says: str, *arguments: object) -> None:
        one_clear_line(run("locate", *arguments, "--model", "no such model"), 2, says)

    refused("no such photo", tmp_path / "none.jpg", "ball")
    refused("the phrase is empty", photos.one, " \n")
    refused("has no known suffix; known: .png, .jpg", photos.one, "ball", "--out", tmp_path / "boxed.pdf")
    refused("has no known suffix", photos.one, "ball", "--out", tmp_path / "boxed")
    refused("exists already", photos.one, "ball", "--out", photos.two)
    refused("is no folder that you may write to", photos.one, "ball", "--out", tmp_path / "none" / "boxed.png")
    refused("is no folder that you may write to", photos.one, "ball", "--out", photos.one / "boxed.png")


def test_a_drawing_that_cannot_be_written_leaves_nothing(
    locate: Any, say: Say, one_clear_line: Any, photos: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    say(BOX)
    monkeypatch.setattr(Image.Image, "save", full)
    one_clear_line(locate(photos.one, "ball", "--out", tmp_path / "boxed.png"), 2, "No space left on device")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jpg", "two.png"]
