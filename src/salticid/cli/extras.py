"""Optional packages that some verbs need."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from salticid.errors import MissingExtraError


def require(extra: str, modules: Sequence[str]) -> None:
    """Raises `MissingExtraError`, which names the command to install them with, when one of the modules is absent."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(f"this command needs {', '.join(missing)}, not installed here; run: pip install 'salticid[{extra}]'")
