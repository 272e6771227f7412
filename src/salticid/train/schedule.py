"""Learning rates over a stage. Source of `lavis`: the linear-warmup cosine of LAVIS, with which TinyGPT-V was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from salticid.train.recipe import ScheduleRecipe


def warmup_steps(schedule: ScheduleRecipe, steps: int) -> int:
    """Steps of the warm-up out of `steps` in all."""
    return schedule.warmup_steps or math.ceil(schedule.warmup_ratio * steps)


def learning_rate(schedule: ScheduleRecipe, steps: int, peak: float, step: int) -> float:
    """The rate of optimizer step `step`, counted from 0, of a part whose own rate is `peak`."""
    warmup = warmup_steps(schedule, steps)
    if step < warmup:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * step / warmup
    start = 0 if schedule.decay == "lavis" else warmup
    progress = min((step - start) / max(steps - start, 1), 1.0)
    return schedule.min_lr + (peak - schedule.min_lr) * SHARES[schedule.decay](progress)


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


# What is left of the way from the peak to `min_lr`, by progress from 0 to 1.
SHARES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": cosine,
    "lavis": cosine,
}


def multiplier(schedule: ScheduleRecipe, steps: int, peak: float) -> Callable[[int], float]:
    """The same as a factor of `peak`, as torch's `LambdaLR` takes it."""
    return partial(_multiplier, schedule, steps, peak)


def _multiplier(schedule: ScheduleRecipe, steps: int, peak: float, step: int) -> float:
    return learning_rate(schedule, steps, peak, step) / peak
