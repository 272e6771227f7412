"""Which weights learn, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from salticid.checkpoints.load import load_model
from salticid.errors import ConfigurationError
from salticid.train.freezing import freeze_except, parameter_groups
from salticid.train.recipe import PartRecipe


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return load_model(tiny_model_folder)


def learning(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("parts", [("connector",), ("language_model", "connector"), ("vision_tower",)])
def test_named_parts_learn_and_nothing_else(model: Any, parts: tuple[str, ...]) -> None:
    freeze_except(model, {part: PartRecipe(learning_rate=1e-3) for part in parts})
    assert learning(model) == {name for name, _ in model.named_parameters() if name.split(".")[0] in parts}
    assert learning(model)


def test_only_narrows_a_part(model: Any) -> None:
    freeze_except(model, {"vision_tower": PartRecipe(learning_rate=1e-3, only=[r"blocks\.[12]\.", r"^model\.head\."])})
    assert learning(model) == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("vision_tower.model.blocks.1.", "vision_tower.model.blocks.2.", "vision_tower.model.head."))
    }
    with pytest.raises(ConfigurationError, match=r"train.vision_tower.only: no parameter matches blocks\\.99"):
        freeze_except(model, {"vision_tower": PartRecipe(learning_rate=1e-3, only=[r"blocks\.99", "head"])})


def test_unknown_parts_are_refused(model: Any) -> None:
    with pytest.raises(ConfigurationError, match="no such part to train: eye; known: vision_tower, connector, language_model"):
        freeze_except(model, {"eye": PartRecipe(learning_rate=1e-3)})


def test_groups_hold_each_learning_weight_once_at_its_rate(model: Any) -> None:
    parts = {"connector": PartRecipe(learning_rate=1e-3, weight_decay=0.1), "language_model": PartRecipe(learning_rate=2e-4)}
    freeze_except(model, parts)
    groups = parameter_groups(model, parts)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1), (1e-3, 0.0), (2e-4, 0.01), (2e-4, 0.0)]
    for group, decayed in zip(groups, (True, False, True, False), strict=True):
        assert all((parameter.ndim > 1) == decayed for parameter in group["params"])
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))  # the tied embedding too
    assert set(held) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
