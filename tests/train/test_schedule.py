"""Learning rates: transformers' curves, TinyGPT-V's own, and what a recipe may not say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from salticid.errors import ConfigurationError
from salticid.train.recipe import ScheduleRecipe
from salticid.train.schedule import learning_rate, multiplier, warmup_steps

PEAK = 3e-4
THEIRS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def schedule(**changes: Any) -> ScheduleRecipe:
    return ScheduleRecipe.model_validate({"steps": 20, "batch_size": 2, **changes})


@pytest.mark.parametrize("warmup", [0, 6])
@pytest.mark.parametrize("decay", THEIRS)
def test_the_usual_curves_are_transformers(decay: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    theirs = get_scheduler(THEIRS[decay], optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(20):
        assert learning_rate(schedule(decay=decay, warmup_steps=warmup), 20, PEAK, step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_rates_start_at_one_number_and_end_at_another() -> None:
    chosen = schedule(warmup_steps=5, warmup_lr=1e-6, min_lr=1e-5)
    rates = [learning_rate(chosen, 20, PEAK, step) for step in range(21)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[5] == pytest.approx(PEAK)
    assert rates[20] == pytest.approx(1e-5)
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_lavis_counts_its_cosine_from_the_first_step() -> None:
    """TinyGPT-V's stage 4: up from 1e-6 to 1e-5 in 1,000 steps, then a cosine from 1e-5 at step 0 to 8e-5 at step 50,000."""
    chosen = schedule(steps=50000, warmup_steps=1000, warmup_lr=1e-6, min_lr=8e-5, decay="lavis")
    for step in (0, 500, 999):
        assert learning_rate(chosen, 50000, 1e-5, step) == pytest.approx(1e-6 + 9e-6 * step / 1000)
    for step in (1000, 20000, 49999):
        assert learning_rate(chosen, 50000, 1e-5, step) == pytest.approx(8e-5 - 7e-5 * 0.5 * (1 + math.cos(math.pi * step / 50000)))
    assert multiplier(chosen, 50000, 1e-5)(49999) == pytest.approx(8, rel=1e-4)


def test_a_warm_up_may_be_a_share() -> None:
    assert warmup_steps(schedule(warmup_ratio=0.03), 1000) == 30
    assert warmup_steps(schedule(warmup_ratio=0.03), 10) == 1
    assert warmup_steps(schedule(warmup_steps=4), 10) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1}, "either steps or epochs"),
        ({"steps": None}, "either steps or epochs"),
        ({"warmup_steps": 2, "warmup_ratio": 0.1}, "either warmup_steps or warmup_ratio"),
        ({"decay": "constant", "min_lr": 1e-5}, "min_lr needs a decay"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(**changes)


def test_a_rate_that_rises_must_be_meant(stage_recipe: Any) -> None:
    rising = {"steps": 4, "batch_size": 2, "min_lr": 0.5}
    with pytest.raises((ValueError, ConfigurationError), match=r"schedule.min_lr 0.5 is above train.connector.learning_rate 0.01; .*lavis"):
        stage_recipe(schedule=rising)
    assert stage_recipe(schedule={**rising, "decay": "lavis"}).schedule.min_lr == 0.5
