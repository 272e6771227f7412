"""Run one training stage from its recipe: load, adapt, freeze, train, save. A run that was cut off goes on from its last checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

import salticid.quant  # noqa: F401  lets transformers read folders with small weights
from salticid.checkpoints.load import load_processor, load_unpacked
from salticid.checkpoints.lora import save_model
from salticid.data.collate import Collator
from salticid.data.templates import get_template
from salticid.engine.catalog import find_model
from salticid.models import VisionLanguageModel, VisionLanguageProcessor
from salticid.train.adapt import adapt, settle_lora
from salticid.train.data import build_data
from salticid.train.freezing import freeze_except, lower_frozen
from salticid.train.precision import choose_precision
from salticid.train.publish import publishing
from salticid.train.ranked import RankedTrainer
from salticid.train.recipe import StageRecipe
from salticid.train.resume import earlier_run, keep_recipe
from salticid.train.self_critical import SelfCriticalTrainer
from salticid.train.trainer import StageTrainer, training_arguments

SHORT = 512
"""Tokens up to which a processor writes attention out: on masked short rows, torch's fused backward pass is several times slower."""


def run_stage(recipe: StageRecipe, resume: bool = True, accept_changes: bool = False) -> Path:
    """Train as the recipe says and write the model to `recipe.output`; returns that folder.

    `training.json` beside the weights keeps the recipe, the loss, the time taken and what could not be used of the data. With `resume`,
    the newest whole checkpoint below `output/checkpoints` is gone on from, at the very next batch; without, older checkpoints are
    deleted. The model itself appears when it is finished, never in part.

    Raises:
        ConfigurationError: see the recipe; or it changed since the checkpoint, and `accept_changes` is not set.
        CheckpointError, DataError: see the model and data.
    """
    precision = choose_precision(recipe.precision)
    checkpoints, last = earlier_run(recipe, resume, accept_changes)
    set_seed(recipe.seed)
    model, processor = _prepare(recipe, precision)
    trainer = _trainer(recipe, model, processor, checkpoints)
    keep_recipe(checkpoints, recipe)
    report = trainer.run(last) | trainer.tally
    report["loss"] = _mean_loss(trainer.state.log_history)
    settle_lora(model, recipe.lora)
    with publishing(recipe.output, report) as folder:
        save_model(model, folder)
        processor.save_pretrained(folder)
    return recipe.output


def _prepare(recipe: StageRecipe, precision: str) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    """The model of the stage before, changed and frozen as the recipe says. What learns is float32, whatever the arithmetic."""
    folder = find_model(recipe.model)
    model, processor = load_unpacked(folder), load_processor(folder)
    adapt(model, processor, recipe)
    freeze_except(model, recipe.train)
    if "fp32" not in (precision, recipe.frozen_precision):  # float32 activations are multiplied by float32 matrices alone
        lower_frozen(model, recipe.frozen_precision)
    if recipe.gradient_checkpointing:
        # The newer name of the two in transformers 5; the older one warns.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.data.max_length <= SHORT and not torch.accelerator.is_available():
        model.language_model.set_attn_implementation("eager")
    if recipe.compile:
        model.language_model.base_model.compile(dynamic=True)
    return model, processor


def _trainer(recipe: StageRecipe, model: VisionLanguageModel, processor: VisionLanguageProcessor, checkpoints: Path) -> StageTrainer:
    options = recipe.data
    collate = Collator(
        processor,
        get_template(model.config.template),
        options.max_length,
        options.pack,
        options.weigh_answers,
        options.label_rule,
        options.hide_padding_ids,
    )
    data = build_data(options, recipe.schedule, recipe.seed, collate)
    common: dict[str, Any] = {
        "recipe": recipe,
        "model": model,
        "train_dataset": data,
        "args": training_arguments(recipe, checkpoints, steps=math.ceil(len(data) / recipe.schedule.step_examples)),
    }
    if recipe.self_critical is not None:
        return SelfCriticalTrainer(recipe.self_critical, data.mixture.sources, collate, **common)
    if recipe.ranked is not None:
        return RankedTrainer(recipe.ranked, collate, **common)
    return StageTrainer(data_collator=collate, **common)


def _mean_loss(history: list[dict[str, Any]]) -> float | None:
    """Mean of the logged losses, over the steps before an interruption too; each stands for the steps since the one before."""
    logged = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    steps = [step - before for (step, _), (before, _) in zip(logged, [(0, 0), *logged], strict=False)]
    return sum(loss * count for (_, loss), count in zip(logged, steps, strict=True)) / logged[-1][0] if logged else None
