"""Opens the JSON lists that data sets keep beside their photos."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from salticid.errors import ConfigurationError, DataError


def read_json(folder: str | os.PathLike[str], name: str) -> Any:
    """The content of `folder/name`.

    Raises:
        DataError: the folder or the file is missing, or the file is no JSON.
    """
    path = Path(folder) / name
    if not Path(folder).is_dir():
        raise DataError(f"There is no folder {folder}; put the data set there or give its folder.")
    if not path.is_file():
        raise DataError(f"There is no {name} in {folder}; give the folder that holds {name} and images/.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); fetch the file again.") from error


def rows_of(content: Any, keys: tuple[str, ...], path: Path) -> list[dict[str, Any]]:
    """`content` as a list of rows that all hold `keys`.

    Raises:
        DataError: no list, no rows, or a row without one of the keys.
    """
    if not isinstance(content, list) or not content:
        raise DataError(f"{path} lists no photos; fetch the file again.")
    for number, row in enumerate(content):
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise DataError(f"Row {number} of {path} lacks {', '.join(missing)}; fetch the file again.")
    return content


def check_split(split: str, splits: tuple[str, ...]) -> None:
    """Raises ConfigurationError for a split that is not among `splits`."""
    if split not in splits:
        raise ConfigurationError(f"Unknown split {split!r}; choose one of {', '.join(splits)}.")


def is_held_out(name: str, percent: int) -> bool:
    """Whether the photo of that file name belongs to the held-out `percent` of photos; the same on every machine."""
    return int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) % 100 < percent
