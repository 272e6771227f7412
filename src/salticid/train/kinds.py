"""What `salticid train` runs, by the key `kind` of a recipe; one without it is a stage of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from salticid.errors import ConfigurationError
from salticid.train.recipe import read_recipe

# Recipe model and runner, as module:name; a module is imported when its kind is run.
KINDS: dict[str | None, tuple[str, str]] = {
    None: ("salticid.train.recipe:StageRecipe", "salticid.train.stage:run_stage"),
    "qformer": ("salticid.train.qformer_recipe:QFormerRecipe", "salticid.train.qformer:run_qformer"),
    "words": ("salticid.train.words_recipe:WordsRecipe", "salticid.train.words:run_words"),
}


def open_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Any, Callable[..., Path]]:
    """A recipe, validated, and what runs it.

    Raises:
        ConfigurationError: an unknown kind, or see `read_recipe`.
    """
    kind = _kind(Path(path))
    if kind not in KINDS:
        raise ConfigurationError(
            f"{path} is of the unknown kind {kind!r}; known: {', '.join(filter(None, KINDS))}; leave it out for a stage"
        )
    recipe, runner = KINDS[kind]
    return read_recipe(path, _named(recipe), overrides), _named(runner)


def _kind(path: Path) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # `read_recipe` says what is wrong with it
        return None
    return values.get("kind") if isinstance(values, dict) else None


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
