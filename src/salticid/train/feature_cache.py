"""What a frozen tower sees of every photo, or view of a photo, computed once and read from disk ever after."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from salticid.errors import CheckpointError
from salticid.models.photos import read_photo
from salticid.models.vision import VisionTower

BATCH = 16


class Views(Protocol):
    """Opened images by their number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


def cached_features(
    folder: Path, tower: VisionTower, image_processor: Any, photos: Sequence[Path], views: Views | None = None, drawn_as: str = ""
) -> np.ndarray:
    """Features (P, N, D) of the photos, float16 and memory-mapped, from `folder/features-*.npy`; computed where it is not there.

    The file's name is a digest of the tower's weights, the image processor and the photos (path, size and time of change), so that
    none of these can change behind it. It appears whole.

    Args:
        views: opened images (P) in place of the photos that they were drawn from; `drawn_as` tells how.

    Raises:
        ImageError: a photo cannot be read. CheckpointError: the folder cannot be written.
    """
    path = Path(folder) / f"features-{_digest(tower, image_processor, photos, drawn_as)}.npy"
    if not path.is_file():
        unfinished = path.with_suffix(".unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _compute(unfinished, tower, image_processor, Opened(photos) if views is None else views)
            unfinished.replace(path)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}; free some space, or set data.cache to false") from error
        finally:
            unfinished.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


class Opened:
    """Photos by their paths, each opened when it is asked for."""

    def __init__(self, photos: Sequence[Path]):
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, number: int) -> Any:
        return read_photo(self.photos[number])


@torch.inference_mode()
def _compute(path: Path, tower: VisionTower, image_processor: Any, images: Views) -> None:
    device = next(tower.parameters()).device
    tower.eval()
    file: Any = None
    for start in tqdm(range(0, len(images), BATCH), desc="features of the frozen tower", unit_scale=BATCH):
        batch = [images[number] for number in range(start, min(start + BATCH, len(images)))]
        features_IND = tower(image_processor(batch, return_tensors="pt")["pixel_values"].to(device)).half().cpu().numpy()
        if file is None:
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(len(images), *features_IND.shape[1:]))
        file[start : start + BATCH] = features_IND
    file.flush()


def _digest(tower: VisionTower, image_processor: Any, photos: Sequence[Path], drawn_as: str) -> str:
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((tower.layers, tower.drop_first, tower.adds_places, tower.size, image_processor.to_json_string())).encode())
    for name, weight in tower.state_dict().items():
        digest.update(name.encode() + weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for photo in photos:
        status = os.stat(photo) if photo.is_file() else None  # a missing one is told of when it is read
        digest.update(repr((os.path.abspath(photo), status and (status.st_size, status.st_mtime_ns))).encode())
    digest.update(drawn_as.encode())
    return digest.hexdigest()
