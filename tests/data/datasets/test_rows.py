from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from salticid.data.datasets import rows as module
from salticid.data.datasets.rows import PackedRows, iterate_rows
from salticid.errors import DataError

ROWS: list[Any] = [{"a": 1, "b": ["x", "ü", "]", '"'], "c": {"d": None}}, [], "text, ]", 17, {}, {"long": "é" * 90}]


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pieces in which files are read, down to single characters."""
    monkeypatch.setattr(module, "CHUNK", request.param)
    return int(request.param)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_read_in_pieces_is_the_list(tmp_path: Path, chunk: int, indent: int | None) -> None:
    path = tmp_path / "list.json"
    for content in (ROWS, [], [123456], ROWS * 20):
        path.write_text("\n " + json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
        assert list(iterate_rows(path)) == content


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    assert list(iterate_rows(path)) == ROWS
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"Line 2 of .*rows\.jsonl is no JSON"):
        list(iterate_rows(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ('{"a": []}', "holds no JSON list"),
        ("<html>", "holds no JSON list"),
        ("[", "Row 0 of .* is no valid JSON"),
        ('[{"a": 1}', "breaks off"),
        ('[{"a": 1}, ', "Row 1 of .* is no valid JSON"),
        ('[{"a": 1}, ]', "Row 1 of .* is no valid JSON"),
        ('[{"a": 1} {"a": 2}]', "damaged after 1 rows"),
        ('[{"a": 1}, {"a": "tex', "Row 1 of .* is no valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_lists_are_named(tmp_path: Path, chunk: int, text: str, says: str) -> None:
    if chunk == 1 and len(text) > 1000:
        pytest.skip("a hundred thousand single characters")
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        list(iterate_rows(path))
    assert "list.json" in str(caught.value)


def test_a_broken_row_is_not_searched_to_the_end_of_a_huge_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 100)
    monkeypatch.setattr(module, "MAX_ROW", 1000)
    path = tmp_path / "list.json"
    path.write_text('[{"a": 1}, {"b: 1}, ' + '{"c": 1}, ' * 10_000 + "{}]")
    rows = iterate_rows(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(DataError, match="Row 1 of"):
        next(rows)
    path.write_text('[{"a": "' + "x" * 5000 + '"}]')
    with pytest.raises(DataError, match="Row 0 of"):
        next(iterate_rows(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no gone\.json in .*option 'annotations'"):
        next(iterate_rows(tmp_path / "gone.json"))
    with pytest.raises(DataError, match="cannot be opened"):
        next(iterate_rows(tmp_path))
    (tmp_path / "latin.json").write_bytes(b'["\xe9\xe9"]')
    with pytest.raises(DataError, match="no text in UTF-8"):
        next(iterate_rows(tmp_path / "latin.json"))


def test_packed_rows_are_the_rows() -> None:
    packed = PackedRows(ROWS)
    packed.append({"odd": "\ud800"})
    assert [packed[index] for index in range(len(packed))] == [*ROWS, {"odd": "\ud800"}]
    for index in (-1, len(packed)):
        with pytest.raises(IndexError):
            packed[index]
