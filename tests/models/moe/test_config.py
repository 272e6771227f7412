"""The expert options: what they accept, choose and save."""

from __future__ import annotations

import json
from typing import Any

import pytest

from salticid.errors import ConfigurationError
from salticid.models.moe import ExpertsConfig


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("alternate", [0, 2, 4]),
        ("first-half", [0, 1]),
        ("second-half", [2, 3, 4]),
        ("all", [0, 1, 2, 3, 4]),
        ([1, 4], [1, 4]),
    ],
)
def test_layers_chosen_of_five(layers: str | list[int], expected: list[int]) -> None:
    config = ExpertsConfig.from_dict({"layers": layers, "experts": 3})
    assert config.experts_per_layer(5) == dict.fromkeys(expected, 3)


def test_experts_singly_per_layer() -> None:
    assert ExpertsConfig(experts=(2, 8), layers=(0, 3)).experts_per_layer(4) == {0: 2, 3: 8}


def test_survives_json() -> None:
    config = ExpertsConfig(experts=(2, 4), layers=(1, 2), routing="deepspeed", second_choice_noise="gumbel", z_loss_coef=0.001)
    assert ExpertsConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_saved_form_is_complete() -> None:
    # A key that goes missing or changes its default would change models that are already saved.
    assert ExpertsConfig().to_dict() == {
        "experts": 4,
        "top_k": 2,
        "layers": "alternate",
        "routing": "dropless",
        "normalise": True,
        "capacity_factor": 1.5,
        "eval_capacity_factor": 2.0,
        "min_capacity": 0,
        "second_choice_noise": "none",
        "random_token_selection": True,
        "residual": False,
        "shared_expert": False,
        "aux_loss_coef": 0.01,
        "z_loss_coef": 0.0,
    }


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"capacity": 1.5}, "Unknown expert options"),
        ({"layers": "sparse"}, "Unknown layers 'sparse'"),
        ({"layers": [2, 0]}, "ascending"),
        ({"layers": [0, 0]}, "ascending"),
        ({"layers": [-1]}, "list of indices"),
        ({"layers": 3}, "list of indices"),
        ({"routing": "switch"}, "Unknown routing"),
        ({"second_choice_noise": True}, "Unknown second_choice_noise"),
        ({"top_k": 5}, "between 1 and the number of experts, 4"),
        ({"top_k": 0}, "between 1 and"),
        ({"top_k": 3, "experts": [4, 2]}, "the number of experts, 2"),
        ({"top_k": 2.0}, "whole number"),
        ({"experts": 0}, "positive number"),
        ({"experts": []}, "positive number"),
        ({"experts": True}, "positive number"),
        ({"normalise": 1}, "true or false"),
        ({"capacity_factor": "1.5"}, "must be a number"),
        ({"capacity_factor": 0}, "above 0"),
        ({"aux_loss_coef": -0.1}, "at least 0"),
        ({"routing": "deepspeed", "top_k": 3}, "knows top_k 1 and 2"),
        ({"routing": "deepspeed", "normalise": False}, "fixes the normalisation"),
        ({"second_choice_noise": "gumbel"}, "needs routing 'deepspeed'"),
        ({"residual": True, "shared_expert": True}, "choose one"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        ExpertsConfig.from_dict(options)


@pytest.mark.parametrize(
    ("options", "layers", "complaint"),
    [
        ({"layers": [0, 4]}, 4, "Layer 4 cannot get experts: the language model has layers 0 to 3"),
        ({"layers": []}, 4, "choose none"),
        ({"layers": "first-half"}, 1, "choose none"),
        ({"experts": [4, 4, 4]}, 4, "3 numbers of experts for the layers"),
    ],
)
def test_options_that_do_not_fit_the_language_model(options: dict[str, Any], layers: int, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        ExpertsConfig.from_dict(options).experts_per_layer(layers)
