"""Miniature data sets as fixtures."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCENES = (
    ("dog", "running through the grass", "in the grass"),
    ("cat", "sleeping on a red couch", "on a couch"),
    ("horse", "jumping over a small fence", "in a field"),
    ("man", "riding a blue bicycle", "on the street"),
    ("woman", "holding a yellow umbrella", "on the beach"),
    ("boy", "kicking a white ball", "at a park"),
)


def write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def write_flickr8k(folder: Path, photos: int = 120) -> Path:
    rows = []
    for number in range(photos):
        subject, action, place = SCENES[number % len(SCENES)]
        count = "Two" if number % 4 == 1 else "A"
        many = {"man": "men", "woman": "women"}.get(subject, subject + "s")
        name = many if count == "Two" else subject
        captions = [
            f"{count} {name} {action} .",
            f"{count} {name} {place} .",
            f"{count} brown {name} {action}",
            f"{count} {name} outside .",
            f"{count} {name} .",
        ]
        rows.append({"image": f"{number}.webp", "captions": captions})
    write(folder, "dev.json", rows[:10])
    return write(folder, "train.json", rows)


def write_daquar(folder: Path, photos: int = 120) -> Path:
    rooms = (("bed", "night_stand"), ("stove", "refridgerator"), ("toilet", "bathtub"), ("whiteboard", "printer"))
    rows = []
    for number in range(photos):
        one, other = rooms[number % len(rooms)]
        rows.append({"image": f"image{number}.webp", "question": " what is near the wall ", "answer": f"{one}, {other}"})
        rows.append({"image": f"image{number}.webp", "question": "how many lamps are there", "answer": "2"})
        rows.append({"image": f"image{number}.webp", "question": "what is on the table", "answer": "tape_dispenser"})
    return write(folder, "train.json", rows)


def write_coco(folder: Path, photos: int = 120) -> Path:
    random_ = random.Random(0)
    categories = ["person", "dog", "cat", "chair", "cup", "bench", "skis", "umbrella"]
    images = []
    for number in range(photos):
        chosen = random_.sample(categories, 3)
        objects = [{"category": c, "bbox": [10 + 200 * i, 10, 150 - 60 * i, 300], "iscrowd": 0} for i, c in enumerate(chosen)]
        objects.append({"category": chosen[0], "bbox": [20, 320, 140, 100], "iscrowd": 0})
        captions = ["A dog runs on the beach ."] * 5 if "dog" in chosen else []
        images.append({"image": f"{number:012d}.webp", "width": 640, "height": 480, "captions": captions, "objects": objects})
    return write(folder, "train.json", {"categories": categories, "images": images})


WRITERS: dict[str, Callable[[Path], Path]] = {"flickr8k": write_flickr8k, "daquar": write_daquar, "coco": write_coco}


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of each miniature data set."""
    return {name: writer(tmp_path_factory.mktemp(name)) for name, writer in WRITERS.items()}
