"""Long lists in JSON files, read one row at a time and held in little memory."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from salticid.errors import DataError

CHUNK = 1 << 20
MAX_ROW = 1 << 26
"""Longest row in characters: a broken file must not be read into memory as a whole in search of the row's end."""

_BLANK = re.compile(r"\s*")
_WHOLE = json.JSONDecoder()


def iterate_rows(path: Path) -> Iterator[Any]:
    """The rows of a JSON list, or with the ending `.jsonl` of a file with one row on each line, without holding the file.

    Raises:
        DataError: the file is missing, is no list, or breaks off; raised where it is met, so rows before it may have been given.
    """
    try:
        with path.open(encoding="utf-8") as file:
            yield from (_lines if path.suffix == ".jsonl" else _list)(file, path)
    except FileNotFoundError:
        raise DataError(f"There is no {path.name} in {path.parent}; put it there, or name the file in the option 'annotations'.") from None
    except (IsADirectoryError, PermissionError):
        raise DataError(f"{path} cannot be opened; it must be a file that you may read.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8; fetch the file again.") from None


def _lines(file: TextIO, path: Path) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"Line {number} of {path} is no JSON ({error}); correct it or fetch the file again.") from None


def _list(file: TextIO, path: Path) -> Iterator[Any]:
    text, place = _skip_blanks(file, "", 0)
    if text[place : place + 1] != "[":
        found = "holds no JSON list" if text[place:] else "is empty"
        raise DataError(f"{path} {found}; a list of rows begins with '['. Fetch the file again, or check the option 'annotations'.")
    place, number, mark = place + 1, 0, ""
    while True:
        text, place = _skip_blanks(file, text, place)
        if text[place : place + 1] == "]" and mark != ",":
            return
        row, text, place = _decode(file, text, place, f"Row {number} of {path}")
        yield row
        number += 1
        text, place = _skip_blanks(file, text, place)
        mark = text[place : place + 1]
        if mark not in (",", "]") or not mark:
            raise DataError(f"{path} breaks off or is damaged after {number} rows; fetch the file again.")
        place += mark == ","


def _skip_blanks(file: TextIO, text: str, place: int) -> tuple[str, int]:
    """A place where the next character is none of the blanks between rows; what was read is dropped now and then."""
    while True:
        place = _BLANK.match(text, place).end()  # type: ignore[union-attr]
        if place > CHUNK:
            text, place = text[place:], 0
        if place < len(text):
            return text, place
        more = file.read(CHUNK)
        if not more:
            return text, place
        text += more


def _decode(file: TextIO, text: str, place: int, name: str) -> tuple[Any, str, int]:
    """The row that begins at `place`; more is read as long as it may merely be cut."""
    while True:
        try:
            row, end = _WHOLE.raw_decode(text, place)
            if end < len(text):  # a number at the very end may go on in the next chunk
                return row, text, end
            problem = "it breaks off"
        except RecursionError:
            raise DataError(f"{name} is nested too deeply; fetch the file again.") from None
        except ValueError as error:
            problem = str(error)
        text, place = text[place:], 0
        more = file.read(max(CHUNK, len(text)))
        if not more or len(text) > MAX_ROW:
            raise DataError(f"{name} is no valid JSON ({problem}); fetch the file again.")
        text += more


class PackedRows:
    """Rows (lists of text and numbers) held as JSON in one buffer: a few times less memory than Python objects, and when a process
    forks to load data, nothing is copied merely because it was looked at."""

    def __init__(self, rows: Iterable[Any] = ()) -> None:
        self._buffer = bytearray()
        self._ends = array("Q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Any) -> None:
        self._buffer += json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        self._ends.append(len(self._buffer))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        """The row at `index`, from 0; raises IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return json.loads(self._buffer[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass"))
