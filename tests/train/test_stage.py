"""One training stage from recipe to model folder: what moves, what stays, and what an interruption costs (nothing)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from salticid.checkpoints.load import load_config, load_model, load_processor
from salticid.errors import ModelNotFoundError
from salticid.quant import quantize_model
from salticid.train.data import TrainingData
from salticid.train.recipe import StageRecipe
from salticid.train.stage import SHORT, run_stage
from salticid.train.trainer import StageTrainer

Build = Callable[..., StageRecipe]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while batch number `step` is computed, counted from 1."""
    count, original = 0, StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    "train",
    [
        {"connector": {"learning_rate": 1e-2}},
        {"connector": {"learning_rate": 1e-2}, "language_model": {"learning_rate": 1e-3}},
        {"vision_tower": {"learning_rate": 1e-3, "only": [r"^model\.head\.conv"]}},
    ],
)
def test_only_what_the_recipe_names_moves(stage_recipe: Build, tiny_model_folder: Path, train: dict[str, Any]) -> None:
    recipe = stage_recipe(train=train, schedule__steps=2, precision="bf16")
    assert run_stage(recipe) == recipe.output
    before, after = weights(tiny_model_folder), weights(recipe.output)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {weight.dtype for name, weight in after.items() if not name.endswith("num_batches_tracked")} == {torch.float32}
    assert all(weight.isfinite().all() for weight in after.values())
    if "vision_tower" in train:
        assert moved == {"vision_tower.model.head.conv.weight"}
    else:
        assert {name.split(".")[0] for name in moved} == set(train)
        assert {name for name in before if name.startswith("connector.")} <= moved


def test_the_result_is_a_whole_model_folder(stage_recipe: Build, tiny_model_folder: Path) -> None:
    recipe = stage_recipe()
    run_stage(recipe)
    model, processor = load_model(recipe.output), load_processor(recipe.output)
    start = load_config(tiny_model_folder)
    for part in ("vision_config", "text_config"):
        assert getattr(model.config, part).to_diff_dict() == getattr(start, part).to_diff_dict()
    assert (model.config.template, model.config.image_token_id) == (start.template, start.image_token_id)
    assert processor.image_tokens == model.config.image_tokens
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    told = report(recipe.output)
    assert (told["steps"], told["examples"], told["resumed_from"]) == (4, 8, None)
    assert StageRecipe.model_validate(told["recipe"]) == recipe
    assert told["loss"] > 0
    assert not (recipe.output / "unfinished").exists()


def test_training_goes_on_from_small_weights(stage_recipe: Build, tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_folder)
    quantize_model(model, 8)
    model.save_pretrained(tmp_path / "small")
    load_processor(tiny_model_folder).save_pretrained(tmp_path / "small")
    recipe = stage_recipe(model=tmp_path / "small", train={"language_model": {"learning_rate": 1e-3}}, schedule__steps=1)
    run_stage(recipe)
    rounded, full = load_model(recipe.output), load_model(tiny_model_folder)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}
    name = "connector.layers.0.weight"  # frozen: the rounded weights themselves
    before, after = full.state_dict()[name], rounded.state_dict()[name]
    assert not torch.equal(before, after)
    assert_close(after, before, atol=float(before.abs().max()) / 127, rtol=0)


def test_training_learns(stage_recipe: Build) -> None:
    """The same few photos over and over: the loss must fall far."""
    losses: list[float] = []
    recipe = stage_recipe(
        train={"connector": {"learning_rate": 3e-3}, "language_model": {"learning_rate": 3e-3}},
        schedule={"steps": 24, "batch_size": 2, "decay": "constant"},
        save_steps=24,
    )
    run_stage(recipe)
    state = json.loads((recipe.output / "checkpoints" / "checkpoint-24" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 24
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert report(recipe.output)["loss"] == pytest.approx(sum(losses) / 24)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    stage_recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    schedule = {"steps": 5, "batch_size": 2, "accumulate": accumulate, "warmup_steps": 2, "decay": "cosine"}
    train = {"connector": {"learning_rate": 1e-2}, "language_model": {"learning_rate": 1e-3}}
    whole = stage_recipe(output=tmp_path / "whole", schedule=schedule, train=train)
    cut = stage_recipe(output=tmp_path / "cut", schedule=schedule, train=train)
    run_stage(whole)
    with monkeypatch.context() as patch:
        interrupt_at(3 * accumulate + 1, patch)
        with pytest.raises(KeyboardInterrupt):
            run_stage(cut)
    with pytest.raises(ModelNotFoundError):
        load_config(cut.output)
    assert [path.name for path in (cut.output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    half = cut.output / "checkpoints" / "checkpoint-3"  # as if the kill came while a checkpoint was written
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (half / "trainer_state.json").write_text('{"global_step": 3, "log_hist')
    read: list[int] = []
    with monkeypatch.context() as patch:
        original = TrainingData.__getitem__
        patch.setattr(TrainingData, "__getitem__", lambda data, index: (read.append(index), original(data, index))[1])
        run_stage(cut)
    assert read == list(range(2 * 2 * accumulate, 5 * 2 * accumulate))  # in order, from the very next batch
    expected, found = weights(whole.output), weights(cut.output)
    for name, weight in expected.items():
        assert_close(found[name], weight, rtol=0, atol=0, msg=name)
    assert report(cut.output)["resumed_from"] == "checkpoint-2"
    assert report(cut.output)["loss"] == pytest.approx(report(whole.output)["loss"])
    assert report(cut.output)["seconds"] >= 0


def test_a_finished_run_is_not_trained_again_unless_told_so(stage_recipe: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = stage_recipe(schedule__steps=2)
    run_stage(recipe)
    first, told = weights(recipe.output), report(recipe.output)
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        run_stage(recipe)
        assert report(recipe.output)["resumed_from"] == "checkpoint-2"
        assert report(recipe.output)["loss"] == pytest.approx(told["loss"])
        with pytest.raises(KeyboardInterrupt):
            run_stage(recipe, resume=False)
    assert not list((recipe.output / "checkpoints").glob("checkpoint-*"))
    assert all(torch.equal(weight, first[name]) for name, weight in weights(recipe.output).items())  # the old model still stands


def test_accumulated_batches_equal_one_large_batch(stage_recipe: Build, tmp_path: Path) -> None:
    """Losses are divided by the labels of all accumulated batches, however many each holds."""
    results = []
    for batch_size, accumulate in ((4, 1), (2, 2)):
        recipe = stage_recipe(
            output=tmp_path / f"{batch_size}x{accumulate}",
            schedule={"steps": 2, "batch_size": batch_size, "accumulate": accumulate, "decay": "constant"},
            data__weigh_answers=False,
            train={"connector": {"learning_rate": 1e-3}},
        )
        run_stage(recipe)
        results.append((weights(recipe.output), report(recipe.output)["loss"]))
    (large, large_loss), (small, small_loss) = results
    assert small_loss == pytest.approx(large_loss, rel=1e-4)
    for name, weight in large.items():
        assert_close(small[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("max_length", "gpu", "chosen"), [(SHORT, False, "eager"), (SHORT + 1, False, "sdpa"), (SHORT, True, "sdpa")])
def test_attention_of_short_rows_is_written_out_on_a_processor(
    max_length: int, gpu: bool, chosen: str, stage_recipe: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def train(self: StageTrainer, **kwargs: Any) -> None:
        used.append(self.model.language_model.config._attn_implementation)
        raise KeyboardInterrupt

    monkeypatch.setattr(StageTrainer, "train", train)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage_recipe(data__max_length=max_length, schedule__steps=1))
    assert used == [chosen]
