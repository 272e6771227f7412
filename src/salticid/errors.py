"""Every error that Salticid raises on purpose. Each message is one line that names the remedy.

    SalticidError
    ├── ConfigurationError      parts that do not fit each other, unknown options, bad recipes
    ├── InputError              what the user gave: an empty question, a bad argument
    │   └── ImageError          a photo that cannot be read, is too large, or is no photo
    ├── ModelNotFoundError      no model of that name, folder or Hub id is at hand
    ├── CheckpointError         weights that are missing, truncated, or of another model
    ├── DataError               a data set that is missing, empty or malformed
    └── MissingExtraError       a command whose optional packages are not installed

Commands print the message alone and exit with `exit_code`; libraries catch `SalticidError`.
"""

from __future__ import annotations


class SalticidError(Exception):
    """Base of all errors that Salticid raises on purpose."""

    exit_code = 1


class ConfigurationError(SalticidError, ValueError):
    """Parts that do not fit each other, unknown options, or a bad recipe."""

    exit_code = 2


class InputError(SalticidError, ValueError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ImageError(InputError):
    """A photo that cannot be read, is too large, or is no photo."""


class ModelNotFoundError(SalticidError, LookupError):
    """No model of that name, folder or Hub id is at hand."""

    exit_code = 3


class CheckpointError(SalticidError, ValueError):
    """Weights that are missing, truncated, or belong to another model."""

    exit_code = 4


class DataError(SalticidError, ValueError):
    """A data set that is missing, empty or malformed."""

    exit_code = 5


class MissingExtraError(SalticidError, ImportError):
    """A command needs optional packages that are not installed."""

    exit_code = 6
