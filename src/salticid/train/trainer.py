"""transformers' `Trainer`, with learning rates per part, data in its given order, and the head on labelled tokens alone."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer

from salticid.train.freezing import parameter_groups
from salticid.train.recipe import StageRecipe


class StageTrainer(Trainer):
    """Trains one stage. The mixture is already shuffled and resumable by index, so it is read in order."""

    def __init__(self, recipe: StageRecipe, **kwargs: Any):
        super().__init__(**kwargs)
        self.recipe = recipe
        self._started = time.monotonic()
        self._before: float | None = None

    @property
    def seconds(self) -> float:
        """Time taken so far, that before interruptions included: up to the last log entry that a checkpoint kept."""
        if self._before is None:
            self._before = max((entry.get("seconds", 0.0) for entry in self.state.log_history), default=0.0)
        return self._before + time.monotonic() - self._started

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "seconds": round(self.seconds, 1)}, start_time)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model: Any = self.model
            groups = parameter_groups(model, self.recipe.train)
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        return self.optimizer

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        data: Any = self.train_dataset
        return SequentialSampler(data)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, {**inputs, "logits_for_labels_only": True, "use_cache": False}, *args, **kwargs)
