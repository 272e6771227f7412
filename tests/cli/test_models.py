from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from salticid.engine.catalog import EMBEDDED, EmbeddedModel


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def embedded(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(EMBEDDED, "tiny", EmbeddedModel(str(tiny_model_folder), "MIT", "random words"))
    return tiny_model_folder


def test_a_table(run: Any, embedded: Path) -> None:
    result = run("models")
    assert (result.code, result.err) == (0, "")
    heading, *rows = result.out.splitlines()
    assert heading.split() == ["NAME", "SIZE", "PARAMETERS", "ACTIVE", "WEIGHTS", "LICENCE"]
    row = next(row for row in rows if row.startswith("tiny"))
    assert row.split()[-3:] == ["MIT", "random", "words"]
    assert "f32" in row


def test_json_for_programs(run: Any, embedded: Path) -> None:
    card = next(card for card in json.loads(run("models", "--json").out) if card["name"] == "tiny")
    assert card["folder"] == str(embedded)
    assert card["parameters"] == card["active"] > 10_000
    assert card["size"] > card["parameters"]
    assert card["licence"] == "MIT"


def test_the_embedded_name_is_what_ask_takes(run: Any, embedded: Path, tmp_path: Path) -> None:
    result = run("ask", tmp_path / "none.jpg", "What?", "--model", "tiny")
    assert "no such photo" in result.err


def test_nothing_at_hand(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(EMBEDDED):
        monkeypatch.delitem(EMBEDDED, name)
    result = run("models")
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("no model is at hand")
