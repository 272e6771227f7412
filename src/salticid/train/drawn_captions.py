"""Captions that a model draws for its training photos, many of each, with the scores of a teacher: what `train.ranked` learns from.

Drawn once and kept, because drawing takes several times as long as learning from what was drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from salticid.data.datasets.files import read_json, rows_of
from salticid.data.questions.captions import DESCRIBE
from salticid.data.records import CaptionedPhoto
from salticid.engine.vision_language import VisionLanguage
from salticid.errors import DataError
from salticid.train.taught_captions import CaptionTeacher

FILE = "drawn.json"
PHOTOS_AT_A_TIME = 8
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class DrawnCaptions:
    """Of one photo: what people say, what the model says, and what the teacher expects the CIDEr-D of each to be."""

    references: tuple[str, ...]
    captions: tuple[str, ...]
    scores: tuple[float, ...]


def draw(
    model: VisionLanguage, teacher: CaptionTeacher, photos: Sequence[CaptionedPhoto], samples: int, temperature: float, seed: int = 0
) -> Iterator[DrawnCaptions]:
    """Each photo's captions, those that differ, drawn `samples` times; the same seed draws the same.

    Raises:
        DataError: the teacher does not know a photo. ImageError: a photo cannot be read.
    """
    if strange := next((photo for photo in photos if not teacher.knows(photo.captions)), None):
        raise DataError(f"the teacher does not know {strange.path.name}; make it anew of the same photos with: salticid data captions")
    for start in tqdm(range(0, len(photos), PHOTOS_AT_A_TIME), desc="photos captioned", unit_scale=PHOTOS_AT_A_TIME):
        batch = photos[start : start + PHOTOS_AT_A_TIME]
        asked = [(photo.path, DESCRIBE) for photo in batch for _ in range(samples)]
        with torch.random.fork_rng():
            torch.manual_seed(seed + start)  # the option `seed` would give every row the same draws
            texts = model.ask_many(asked, batch_size=len(asked), temperature=temperature, max_new_tokens=MAX_NEW_TOKENS)
        for number, photo in enumerate(batch):
            # A turn without an answer would be an open question to the template; a full stop scores as nothing too.
            said = [text.strip() or "." for text in texts[number * samples : (number + 1) * samples]]
            captions = tuple(dict.fromkeys(said))
            yield DrawnCaptions(tuple(photo.captions), captions, tuple(teacher.score(captions, photo.captions)))


def write_drawn(folder: Path, drawn: Sequence[DrawnCaptions]) -> None:
    """Into `folder/drawn.json`."""
    (folder / FILE).write_text(json.dumps([asdict(each) for each in drawn], indent=0) + "\n", encoding="utf-8")


def read_drawn(folder: Path) -> dict[tuple[str, ...], DrawnCaptions]:
    """What `salticid data drawn` wrote, by people's captions of each photo.

    Raises:
        DataError: no such folder or file, or a row that is not as it was written.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise DataError(f"there are no drawn captions at {folder}; draw them with: salticid data drawn")
    found = {}
    for number, row in enumerate(rows_of(read_json(folder, FILE), ("references", "captions", "scores"), path)):
        references, captions, scores = (row[key] for key in ("references", "captions", "scores"))
        if not (_all(references, str) and _all(captions, str) and _all(scores, float | int) and len(captions) == len(scores)):
            raise DataError(f"row {number} of {path} is not as it was written; draw it again with: salticid data drawn")
        found[tuple(references)] = DrawnCaptions(tuple(references), tuple(captions), tuple(map(float, scores)))
    return found


def _all(values: object, kind: object) -> bool:
    whole = isinstance(values, list) and all(isinstance(value, kind) for value in values)  # type: ignore[arg-type]
    return whole and all(not isinstance(value, float) or math.isfinite(value) for value in values)  # type: ignore[attr-defined]
