"""Photos as they are named on a command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from salticid.errors import ImageError, InputError

STDIN = "-"


def open_arguments(names: Sequence[str]) -> list[str | bytes]:
    """Paths as they are, and the bytes of standard input for `-`. A missing file is refused here, before a model is loaded.

    Raises:
        ImageError: a file does not exist.
        InputError: `-` stands twice.
    """
    if list(names).count(STDIN) > 1:
        raise InputError("standard input (-) can give one photo only; name the other photos by path")
    for name in names:
        check_exists(name)
    return [sys.stdin.buffer.read() if name == STDIN else name for name in names]


def check_exists(name: str) -> None:
    """Raises `ImageError` when the path is clearly none: reading says the rest."""
    if name != STDIN and "://" not in name and not os.path.lexists(name):
        raise ImageError(f"no such photo: {name!r}; check the path")
