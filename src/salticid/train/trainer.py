"""transformers' `Trainer`, with learning rates per part, data in its given order, and the head on labelled tokens alone.

Its checkpoints hold what learns and nothing else: the rest is still where the stage started from.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from salticid.checkpoints.weights import read_file
from salticid.errors import CheckpointError, ConfigurationError, DataError
from salticid.train.freezing import learning_parameters, parameter_groups, resting_modules
from salticid.train.precision import choose_precision
from salticid.train.qformer_recipe import QFormerRecipe
from salticid.train.recipe import StageRecipe
from salticid.train.schedule import multiplier
from salticid.train.words_recipe import WordsRecipe

LEARNED_FILE = "learned.safetensors"


def training_arguments(recipe: StageRecipe | QFormerRecipe | WordsRecipe, checkpoints: Path, steps: int) -> TrainingArguments:
    """What transformers' `Trainer` is told of a recipe; optimizer and schedule are the trainers' own. Checkpoints go to `checkpoints`."""
    precision = choose_precision(recipe.precision)
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=recipe.schedule.batch_size,
        gradient_accumulation_steps=recipe.schedule.accumulate,
        max_grad_norm=recipe.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=recipe.data.workers,
        save_steps=recipe.save_steps,
        save_total_limit=1,
        logging_steps=recipe.log_steps,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        seed=recipe.seed,
    )


class ResumableTrainer(Trainer):
    """Data are already shuffled and resumable by index, so they are read in order; counts and time outlast an interruption."""

    recipe: Any

    def __init__(self, recipe: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.recipe = recipe
        self._started = time.monotonic()
        self._earlier: dict[str, float] = {}

    def run(self, last: Path | None) -> dict[str, Any]:
        """Train, on from checkpoint `last`; returns what `training.json` says of every kind of run.

        Raises:
            DataError: in one line also where a process that reads photos ahead sends its whole traceback.
        """
        try:
            result = self.train(resume_from_checkpoint=None if last is None else str(last))
        except DataError as error:
            raise DataError(str(error).strip().splitlines()[-1].removeprefix("salticid.errors.DataError: ")) from error
        data: Any = self.train_dataset
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "steps": result.global_step,
            "examples": len(data),
            "seconds": round(self.seconds),
            "resumed_from": last and last.name,
            "precision": choose_precision(self.recipe.precision),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    @property
    def seconds(self) -> float:
        """Time taken so far, that before interruptions included: up to the last log entry that a checkpoint kept."""
        return self._before("seconds") + time.monotonic() - self._started

    @property
    def tally(self) -> dict[str, int]:
        """What could not be used of the data so far, that before interruptions included."""
        data: Any = self.train_dataset
        return {name: int(self._before(name)) + count for name, count in data.tally.counts.items()}

    def _before(self, name: str) -> float:
        if name not in self._earlier:
            self._earlier[name] = max((entry.get(name, 0.0) for entry in self.state.log_history), default=0.0)
        return self._earlier[name]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        unused = {name: float(count) for name, count in self.tally.items() if count}
        super().log({**logs, **unused, "seconds": round(self.seconds, 1)}, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            chosen: Any = self.optimizer if optimizer is None else optimizer
            factors = [multiplier(self.recipe.schedule, num_training_steps, group["lr"]) for group in chosen.param_groups]
            self.lr_scheduler = LambdaLR(chosen, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        data: Any = self.train_dataset
        return SequentialSampler(data)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        learned = {name: parameter.detach().contiguous() for name, parameter in learning_parameters(model).items()}
        save_file(learned, folder / LEARNED_FILE, metadata={"format": "pt"})

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        learned = read_file(Path(resume_from_checkpoint) / LEARNED_FILE)
        whole: Any = self.model if model is None else model
        own = learning_parameters(whole)
        if strange := sorted(learned.keys() ^ own.keys()):
            raise CheckpointError(f"{resume_from_checkpoint} is of another stage ({len(strange)} weights, {strange[0]}); use --restart")
        for name, parameter in own.items():
            parameter.copy_(learned[name])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """An older checkpoint goes only when the new one is whole; a full disk costs the steps since, not the run."""
        target = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(target, ignore_errors=True)
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"cannot write {target}: {reason}; free some space and start again, from the one before") from error


class StageTrainer(ResumableTrainer):
    """Trains one stage of a whole model."""

    recipe: StageRecipe

    def __init__(self, recipe: StageRecipe, **kwargs: Any):
        super().__init__(recipe, **kwargs)
        model: Any = self.model
        self._resting = [*resting_modules(model.vision_tower), *resting_modules(model.connector)]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model: Any = self.model
            groups = parameter_groups(model, self.recipe.train)
            self.optimizer = torch.optim.AdamW(groups, betas=self.recipe.betas, fused=True)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        for module in self._resting:  # no dropout in an eye that does not learn, as upstream trains a frozen Q-Former
            module.eval()
        if num_items_in_batch is not None:  # a step of which a label rule learns nothing must not divide by zero
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        inputs = {**inputs, "logits_for_labels_only": True, "use_cache": False}
        result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch, **kwargs)
        loss = result[0] if return_outputs else result
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ConfigurationError("a batch of text alone passes nothing that learns; leave such rows out, or train the language model")
        return result
