"""A recipe over miniature data, for whatever a test wants to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic", reason="needs the extra 'train'")
pytest.importorskip("accelerate", reason="needs the extra 'train'")

from salticid.train.recipe import StageRecipe


@pytest.fixture
def stage_recipe(tiny_model_folder: Path, data_folder: Path, tmp_path: Path) -> Callable[..., StageRecipe]:
    """Four steps of two photos in float32, on the connector alone, unless a test says otherwise; keys of parts are `data__pack`."""

    def build(**changes: Any) -> StageRecipe:
        values: dict[str, Any] = {
            "name": "test",
            "model": tiny_model_folder,
            "output": tmp_path / "trained",
            "train": {"connector": {"learning_rate": 1e-2}},
            "data": {
                "folder": data_folder,
                "max_length": 160,
                "flip": True,
                "crop": 0.8,
                "weigh_answers": True,
                "sources": [
                    {"kind": "flickr8k", "path": "flickr8k", "weight": 3, "options": {"captions": 1, "questions": 1}},
                    {"kind": "daquar", "path": "daquar", "options": {"questions": 1, "existence": 1}},
                ],
            },
            "schedule": {"steps": 4, "batch_size": 2, "warmup_steps": 1},
            "precision": "fp32",
            "save_steps": 2,
            "log_steps": 1,
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            holder = values
            for parent in parents:
                holder = holder[parent]
            holder[last] = value
        return StageRecipe.model_validate(values)

    return build
