"""Where a run that was cut off goes on, and whether it still does what it did before."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from salticid.errors import CheckpointError, ConfigurationError
from salticid.train.recipe import Strict

RECIPE_FILE = "recipe.json"
# Keys that say how a machine runs a stage, not what it learns; also below them.
FREE = ("output", "data.folder", "data.workers", "data.max_unreadable", "compile", "gradient_checkpointing", "save_steps", "log_steps")


def earlier_run(recipe: Any, resume: bool, accept_changes: bool) -> tuple[Path, Path | None]:
    """Where a run keeps its checkpoints, and the newest of them to go on from; without `resume`, earlier ones are deleted.

    Raises:
        ConfigurationError: the recipe changed since, and `accept_changes` is not set.
    """
    checkpoints = recipe.output / "checkpoints"
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    last = newest_checkpoint(checkpoints)
    if last is not None and not accept_changes:
        refuse_changes(checkpoints, recipe)
    return checkpoints, last


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest that is whole: its state is written last, and is missing or cut short where a kill interrupted the writing."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key old -> new` for every key of two recipes that differs and matters."""
    old, new = _flat(before), _flat(now)
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in names if not any(f"{name}.".startswith(f"{key}.") for key in FREE)]


def refuse_changes(checkpoints: Path, recipe: Strict) -> None:
    """Raises `ConfigurationError` where the checkpoints below `checkpoints` were made by another recipe."""
    try:
        before = json.loads((checkpoints / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    with contextlib.suppress(ValueError):  # a key that a newer version adds counts as it stood by default
        before = type(recipe).model_validate(before).model_dump(mode="json")
    if changes := changed_keys(before, recipe.model_dump(mode="json")):
        raise ConfigurationError(
            f"the recipe has changed since {checkpoints} was begun: {'; '.join(changes)}. Put it back, start anew with --restart, "
            "or go on with the new one with --accept-changes"
        )


def keep_recipe(checkpoints: Path, recipe: Strict) -> None:
    """Remember what the checkpoints are made by."""
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        (checkpoints / RECIPE_FILE).write_text(json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {checkpoints}: {error.strerror}; free some space or choose another output") from error


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping of dotted keys, as overrides are written; empty ones and nulls are left out."""
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        items = list(enumerate(values))
    else:
        return {} if values is None else {prefix: values}
    return {name: value for key, inner in items for name, value in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}
