"""A run that goes on: only with the recipe that it was begun with, and never from half a checkpoint."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from salticid.errors import CheckpointError, ConfigurationError
from salticid.train import trainer as trainer_module
from salticid.train.recipe import StageRecipe
from salticid.train.resume import changed_keys, newest_checkpoint
from salticid.train.stage import run_stage
from salticid.train.trainer import LEARNED_FILE

Build = Callable[..., StageRecipe]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def test_changed_keys_are_named_as_overrides_are_written(stage_recipe: Build) -> None:
    before = stage_recipe().model_dump(mode="json")
    changes: list[tuple[dict[str, Any], list[str]]] = [
        ({}, []),
        ({"schedule__steps": 9}, ["schedule.steps 4 -> 9"]),
        ({"train": {"connector": {"learning_rate": 0.5}}}, ["train.connector.learning_rate 0.01 -> 0.5"]),
        ({"data__max_length": 200, "seed": 3}, ["data.max_length 160 -> 200", "seed 0 -> 3"]),
        ({"save_steps": 7, "log_steps": 3, "compile": True, "data__workers": 2, "data__folder": "/moved"}, []),
        ({"lora": {"targets": ["q_proj"], "rank": 2}}, ["lora.rank None -> 2", "lora.targets None -> ['q_proj']"]),
    ]
    for change, expected in changes:
        now = stage_recipe(**change).model_dump(mode="json")
        found = changed_keys(before, now)
        assert set(expected) <= set(found) if "lora" in change else found == expected
    fewer = json.loads(json.dumps(before))
    del fewer["data"]["sources"][1]
    assert any(change.startswith("data.sources.1.kind daquar -> None") for change in changed_keys(before, fewer))


def test_a_changed_recipe_is_noticed(stage_recipe: Build, tmp_path: Path) -> None:
    first = stage_recipe(schedule__steps=2)
    run_stage(first)
    changed = stage_recipe(schedule__steps=3, train={"connector": {"learning_rate": 5e-3}})
    with pytest.raises(
        ConfigurationError, match=r"learning_rate 0.01 -> 0.005; schedule.steps 2 -> 3. .*--restart.*--accept-changes"
    ) as raised:
        run_stage(changed)
    assert "\n" not in str(raised.value)
    assert report(first.output)["steps"] == 2
    run_stage(changed, accept_changes=True)
    assert (report(first.output)["steps"], report(first.output)["resumed_from"]) == (3, "checkpoint-2")
    run_stage(changed)  # its own recipe by now
    run_stage(first, resume=False)
    assert (report(first.output)["steps"], report(first.output)["resumed_from"]) == (2, None)


def test_checkpoints_hold_what_learns_alone(stage_recipe: Build) -> None:
    recipe = stage_recipe(schedule__steps=2)
    run_stage(recipe)
    checkpoint = newest_checkpoint(recipe.output / "checkpoints")
    assert checkpoint is not None
    learned = load_file(checkpoint / LEARNED_FILE)
    assert learned
    assert all(name.startswith("connector.") for name in learned)
    whole = load_file(recipe.output / "model.safetensors")
    assert all(torch.equal(whole[name], tensor) for name, tensor in learned.items())
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is of another stage .*--restart"):
        run_stage(stage_recipe(schedule__steps=2, train={"language_model": {"learning_rate": 1e-3}}), accept_changes=True)


def test_a_full_disk_keeps_the_checkpoint_before(stage_recipe: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = stage_recipe(schedule__steps=6)
    original, saved = trainer_module.save_file, []

    def full(tensors: Any, path: Path, **options: Any) -> None:
        saved.append(path)
        if len(saved) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "save_file", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint-4: .*No space left.*start again"):
            run_stage(recipe)
    assert [path.name for path in (recipe.output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (recipe.output / "config.json").exists()
    run_stage(recipe)
    assert (report(recipe.output)["resumed_from"], report(recipe.output)["steps"]) == ("checkpoint-2", 6)
