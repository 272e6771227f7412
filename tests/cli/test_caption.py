from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import salticid


@pytest.fixture
def caption(run: Any, tiny_model_folder: Path) -> Any:
    return lambda *arguments, **options: run("caption", *arguments, "--model", tiny_model_folder, "--max-new-tokens", 6, **options)


@pytest.fixture
def captions(tiny_model_folder: Path, photos: SimpleNamespace) -> list[str]:
    vlm = salticid.load(tiny_model_folder, device="cpu")
    return [" ".join(vlm.caption(photo, max_new_tokens=6).split()) for photo in (photos.one, photos.two)]


def test_one_photo_gives_its_caption_alone(caption: Any, photos: SimpleNamespace, captions: list[str]) -> None:
    assert caption(photos.one) == (0, f"{captions[0]}\n", "")
    assert caption("-", stdin=photos.one.read_bytes()).out == f"{captions[0]}\n"


def test_several_photos_give_one_line_each(caption: Any, photos: SimpleNamespace, captions: list[str]) -> None:
    assert caption(photos.one, photos.two) == (0, f"{photos.one}\t{captions[0]}\n{photos.two}\t{captions[1]}\n", "")


def test_json_lines(caption: Any, photos: SimpleNamespace, captions: list[str]) -> None:
    lines = [json.loads(line) for line in caption(photos.one, photos.two, "--json").out.splitlines()]
    assert lines == [{"photo": str(photos.one), "caption": captions[0]}, {"photo": str(photos.two), "caption": captions[1]}]


def test_a_bad_photo_does_not_stop_the_others(caption: Any, photos: SimpleNamespace, captions: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"once upon a time")
    result = caption(bad, photos.two, tmp_path / "none.jpg")
    assert result.code == 2
    assert result.out == f"{photos.two}\t{captions[1]}\n"
    errors = result.err.splitlines()
    assert len(errors) == 2
    assert "holds text, not a photo" in errors[0]
    assert "no such photo" in errors[1]

    lines = [json.loads(line) for line in caption(bad, photos.two, "--json").out.splitlines()]
    assert lines[0].keys() == {"photo", "error"}
    assert lines[1]["caption"] == captions[1]


def test_one_bad_photo_is_one_line(caption: Any, one_clear_line: Any, tmp_path: Path) -> None:
    one_clear_line(caption(tmp_path / "none.jpg"), 2, "no such photo")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"once upon a time")
    one_clear_line(caption(bad), 2, "holds text, not a photo")


def test_a_bar_where_somebody_watches(caption: Any, photos: SimpleNamespace, captions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    result = caption(photos.one, photos.two)
    assert "Captions" in result.err
    assert result.out == f"{photos.one}\t{captions[0]}\n{photos.two}\t{captions[1]}\n"
