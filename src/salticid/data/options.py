"""Checks of the options that a recipe gives to a data set: a wrong one is named before any file is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from salticid.errors import ConfigurationError


def check_share(option: str, value: Any) -> None:
    """Raises ConfigurationError where an option is no share from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"{option} is a share from 0 to 1, not {value!r}")


def check_names(option: str, value: Any) -> list[str]:
    """One name or several as a list; raises ConfigurationError for anything else."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError(f"{option} is a file name or a list of them, not {value!r}")
    return list(names)


def check_choice(option: str, value: Any, choices: Iterable[str]) -> None:
    """Raises ConfigurationError that lists the choices where `value` is none of them."""
    if value not in tuple(choices):
        raise ConfigurationError(f"unknown {option} {value!r}; known: {', '.join(choices)}")
