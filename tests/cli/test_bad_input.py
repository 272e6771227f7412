"""Whatever people do wrong: one clear line, an exit code that is not 0, no traceback."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from salticid.engine.vision_language import VisionLanguage

QUESTION = "What is in this photo?"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *before: bytes, rows: bytes = b"\0" * 4) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# A few kilobytes that claim or hold far more than they are.
TEXT_BOMB = png(1, 1, chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"\0" * 5_000_000)))
GIF_BOMB = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x08\x01\0;"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text.jpg", b"once upon a time", "holds text, not a photo"),
        ("empty.jpg", b"", "is empty"),
        ("zero.png", png(0, 0), "0 pixels"),
        ("huge.png", png(30_000, 30_000), "30000x30000 pixels, more than 100 megapixels: resize it first"),
        ("bomb.gif", GIF_BOMB, "65535x65535 pixels"),
        ("bomb.png", TEXT_BOMB, "is no readable PNG"),
    ],
)
def test_files_that_are_no_photo(ask: Any, one_clear_line: Any, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    one_clear_line(ask(path, QUESTION), 2, says)


def test_a_truncated_jpeg(ask: Any, one_clear_line: Any, photos: SimpleNamespace) -> None:
    photos.one.write_bytes(photos.one.read_bytes()[:-500])
    one_clear_line(ask(photos.one, QUESTION), 2, "is truncated")


def test_no_such_file(ask: Any, one_clear_line: Any, tmp_path: Path) -> None:
    one_clear_line(ask(tmp_path / "none.jpg", QUESTION), 2, "no such photo")
    one_clear_line(ask(tmp_path, QUESTION), 2, "is a folder")
    one_clear_line(ask("https://example.com/photo.jpg", QUESTION), 2, "is a URL: download the photo first")


def test_nothing_on_standard_input(ask: Any, one_clear_line: Any) -> None:
    one_clear_line(ask("-", QUESTION), 2, "is empty")
    one_clear_line(ask("-", "-", QUESTION), 2, "one photo only")


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_an_empty_question(ask: Any, one_clear_line: Any, photos: SimpleNamespace, question: str) -> None:
    one_clear_line(ask(photos.one, question), 2, "the question is empty")


def test_no_question(run: Any, one_clear_line: Any, photos: SimpleNamespace) -> None:
    one_clear_line(run("ask", photos.one), 2, "Missing argument 'PHOTO' (see salticid ask --help)")
    one_clear_line(run("ask", photos.one, QUESTION, "--temperature", "-1"), 2, "--temperature")
    one_clear_line(run("aks"), 2, "aks")


def test_a_question_longer_than_the_model_reads(ask: Any, one_clear_line: Any, photos: SimpleNamespace) -> None:
    result = ask(photos.one, "why " * 400)
    assert result.code == 2
    assert result.err.startswith("error: the question with its photos takes")
    assert result.err.count("\n") == 1


def test_an_unknown_model(run: Any, one_clear_line: Any, photos: SimpleNamespace) -> None:
    one_clear_line(run("ask", photos.one, QUESTION, "--model", "giant"), 3, "no model 'giant'; give an embedded model (nano)")


def test_a_hub_id_without_network(
    run: Any, one_clear_line: Any, photos: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    one_clear_line(run("ask", photos.one, QUESTION, "--model", "owner/name"), 3, "connect to the network, or use an embedded model (nano)")


def test_folders_without_weights_or_processor(
    run: Any, one_clear_line: Any, photos: SimpleNamespace, tiny_model_folder: Path, tmp_path: Path
) -> None:
    def ask_model(folder: Path) -> Any:
        return run("ask", photos.one, QUESTION, "--model", folder)

    folder = tmp_path / "model"
    folder.mkdir()
    one_clear_line(ask_model(folder), 3, "a model folder holds config.json")
    shutil.copy(tiny_model_folder / "config.json", folder)
    one_clear_line(ask_model(folder), 4, "no model.safetensors")
    shutil.copy(tiny_model_folder / "model.safetensors", folder)
    one_clear_line(ask_model(folder), 4, "lacks its processor files")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    one_clear_line(ask_model(folder), 4, "damaged")


def test_unknown_precision_and_device(ask: Any, one_clear_line: Any, photos: SimpleNamespace) -> None:
    one_clear_line(ask(photos.one, QUESTION, "--precision", "fp7"), 2, "unknown precision 'fp7'; known: auto")
    one_clear_line(ask(photos.one, QUESTION, "--device", "abacus"), 2, "unknown device 'abacus'; known: auto")


def interrupted(*_: Any, **__: Any) -> Iterator[str]:
    yield "a dog"
    raise KeyboardInterrupt


def test_ctrl_c_in_the_middle(ask: Any, photos: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisionLanguage, "stream", interrupted)
    assert ask(photos.one, QUESTION) == (130, "a dog\n", "interrupted\n")


def broken(*_: Any, **__: Any) -> Iterator[str]:
    raise RuntimeError("out of memory\n  in a long\n  C++ message")


def test_a_bug_is_one_line_too_unless_debugging(
    run: Any,
    ask: Any,
    one_clear_line: Callable[..., None],
    photos: SimpleNamespace,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(VisionLanguage, "stream", broken)
    one_clear_line(
        ask(photos.one, QUESTION), 70, "unexpected RuntimeError: out of memory in a long C++ message; 'salticid --debug ...' shows where"
    )
    assert "Traceback" in run("--debug", "ask", photos.one, QUESTION, "--model", tiny_model_folder).err
    monkeypatch.setenv("SALTICID_DEBUG", "1")
    assert "Traceback" in ask(photos.one, QUESTION).err
