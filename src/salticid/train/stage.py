"""Run one training stage from its recipe: load, freeze, train, save. A run that was cut off goes on from its last checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from salticid.checkpoints.load import load_model, load_processor
from salticid.data.collate import Collator
from salticid.data.templates import get_template
from salticid.train.data import TrainingData
from salticid.train.freezing import freeze_except
from salticid.train.publish import publishing
from salticid.train.recipe import StageRecipe
from salticid.train.trainer import StageTrainer

SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def run_stage(recipe: StageRecipe, resume: bool = True) -> Path:
    """Train as the recipe says and write the model to `recipe.output`; returns that folder.

    `training.json` beside the weights keeps the recipe, the loss and the time taken. With `resume`, the newest whole checkpoint below
    `output/checkpoints` is gone on from, at the very next batch; without, older checkpoints are deleted. The model itself appears
    when it is finished, never in part.

    Raises:
        ConfigurationError, CheckpointError, DataError: see the recipe, model and data.
    """
    set_seed(recipe.seed)
    schedule = recipe.schedule
    model = load_model(recipe.model, dtype=torch.float32)
    processor = load_processor(recipe.model)
    freeze_except(model, recipe.train)
    if recipe.compile:
        model.language_model.base_model.compile(dynamic=True)
    examples = schedule.steps * schedule.batch_size * schedule.accumulate
    data = TrainingData(recipe.data, length=examples, seed=recipe.seed)
    checkpoints = recipe.output / "checkpoints"
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    trainer = StageTrainer(
        recipe=recipe,
        model=model,
        args=TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=schedule.steps,
            per_device_train_batch_size=schedule.batch_size,
            gradient_accumulation_steps=schedule.accumulate,
            warmup_steps=schedule.warmup_steps,
            lr_scheduler_type=SCHEDULERS[schedule.decay],
            max_grad_norm=recipe.max_grad_norm,
            bf16=recipe.precision == "bf16",
            use_cpu=not torch.accelerator.is_available(),
            save_steps=recipe.save_steps,
            save_total_limit=1,
            logging_steps=recipe.log_steps,
            report_to=["tensorboard"],
            remove_unused_columns=False,
            seed=recipe.seed,
        ),
        train_dataset=data,
        data_collator=Collator(
            processor, get_template(model.config.template), recipe.data.max_length, recipe.data.pack, recipe.data.weigh_answers
        ),
    )
    last = _newest_checkpoint(checkpoints)
    result = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    report = {
        "recipe": recipe.model_dump(mode="json"),
        "loss": _mean_loss(trainer.state.log_history),
        "steps": result.global_step,
        "examples": examples,
        "seconds": round(trainer.seconds),
        "resumed_from": last and last.name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    with publishing(recipe.output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return recipe.output


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest that is whole: its state is written last, and is missing or cut short where a kill interrupted the writing."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def _mean_loss(history: list[dict[str, Any]]) -> float | None:
    """Mean of the logged losses, over the steps before an interruption too; each stands for the steps since the one before."""
    logged = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    steps = [step - before for (step, _), (before, _) in zip(logged, [(0, 0), *logged], strict=False)]
    return sum(loss * count for (_, loss), count in zip(logged, steps, strict=True)) / logged[-1][0] if logged else None
