"""Reads pickles that hold nothing but lists, mappings, texts and numbers, so that a file from elsewhere cannot run a program."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from salticid.errors import DataError


class _PlainUnpickler(pickle.Unpickler):
    """Lists, mappings, texts and numbers have codes of their own in a pickle; all else must first be looked up by its name, here."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle file, of Python 2 or 3.

    Raises:
        DataError: the file is missing, damaged, or asks for anything that is no plain value.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); put the file there or name it in the option 'refs'.") from None
    except Exception as error:  # a damaged pickle fails in as many ways as it has codes
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no pickle of plain lists and mappings ({detail}); fetch it from its authors again.") from None
