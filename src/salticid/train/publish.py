"""A finished model takes its place at once, beside the checkpoints that it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salticid.checkpoints.lora import LORA_FOLDER
from salticid.errors import CheckpointError

UNFINISHED = "unfinished"
REPORT_FILE = "training.json"


@contextmanager
def publishing(folder: Path, report: dict[str, Any] | None = None) -> Iterator[Path]:
    """A folder to write a model into; when the block ends, its files take their places in `folder`, over those of an older model.

    `config.json`, without which a folder holds no model, goes first and comes last: whoever looks after a kill finds the old model,
    none, or the new one, never half of one. What else lies in `folder` stays. `report` becomes `training.json` beside the weights.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    unfinished = Path(folder) / UNFINISHED
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if report is not None:
            (unfinished / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _take_places(unfinished, Path(folder))
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}; free some space or choose another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _take_places(unfinished: Path, folder: Path) -> None:
    (folder / "config.json").unlink(missing_ok=True)
    for old in folder.glob("model*.safetensors*"):  # an older model may have had more files of weights
        old.unlink()
    shutil.rmtree(folder / LORA_FOLDER, ignore_errors=True)  # or adapters, which would be taken for the new one's
    for new in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
        new.replace(folder / new.name)
