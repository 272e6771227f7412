"""The command line, called in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from salticid.cli.main import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with `stdin` (bytes) and return its exit code and what it printed."""

    def call(*arguments: object, stdin: bytes = b"") -> Result:
        text = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", text)
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def ask(run: Run, tiny_model_folder: Path) -> Run:
    """`salticid ask` of the tiny model, for a short answer."""
    return lambda *arguments, **options: run("ask", *arguments, "--model", tiny_model_folder, "--max-new-tokens", 6, **options)


@pytest.fixture
def photos(tmp_path: Path) -> SimpleNamespace:
    """Two good photos."""
    rng = np.random.default_rng(0)
    for name in ("one.jpg", "two.png"):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    return SimpleNamespace(one=tmp_path / "one.jpg", two=tmp_path / "two.png")


def assert_one_clear_line(result: Result, code: int, says: str) -> None:
    """Nothing on standard output, one line on standard error."""
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert says in result.err


@pytest.fixture
def one_clear_line() -> Callable[[Result, int, str], None]:
    return assert_one_clear_line
