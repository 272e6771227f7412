"""Model folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salticid.checkpoints.lora import save_model
from salticid.errors import CheckpointError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its name in one step when the block ends, and vanishes when the block fails.

    Raises:
        CheckpointError: the folder exists and is not empty, or cannot be written; nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; choose another folder, or remove it first")
    unfinished: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield unfinished
        unfinished.chmod(0o755)
        for file in unfinished.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        unfinished.replace(folder)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}; free some space or choose another folder") from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def save_folder(folder: Path, model: VisionLanguageModel, processor: VisionLanguageProcessor) -> Path:
    """Write model and processor into a new folder; errors as `new_folder`."""
    with new_folder(folder) as unfinished:
        save_model(model, unfinished)
        processor.save_pretrained(unfinished)
    return Path(folder)
