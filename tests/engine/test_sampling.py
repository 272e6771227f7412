from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from salticid.engine.sampling import GenerationOptions, next_token, penalise_repetition, token_probabilities
from salticid.errors import InputError

LOGITS = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 7, 1.0), (1.7, 0, 0.6), (0.8, 12, 0.7), (1.0, 1, 0.01), (1.0, 99, 0.9)]
)
def test_probabilities_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = TemperatureLogitsWarper(temperature)(None, LOGITS[None])
    logits = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    expected = TopPLogitsWarper(top_p)(None, logits).softmax(-1)[0]
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(token_probabilities(LOGITS, options), expected)


def test_repetition_penalty_is_that_of_transformers() -> None:
    seen = torch.tensor([3, 3, 17, 5, 39])
    expected = RepetitionPenaltyLogitsProcessor(1.8)(seen[None], LOGITS[None].clone())[0]
    torch.testing.assert_close(penalise_repetition(LOGITS, seen, 1.8), expected)
    assert penalise_repetition(LOGITS, seen, 1.0) is LOGITS


def test_temperature_zero_takes_the_likeliest() -> None:
    assert next_token(LOGITS, torch.tensor([0]), GenerationOptions(), None) == int(LOGITS.argmax())


def test_draws_follow_the_probabilities() -> None:
    options = GenerationOptions(temperature=1.0, top_k=3)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.tensor([next_token(LOGITS, torch.tensor([0]), options, generator) for _ in range(1500)])
    counts = torch.bincount(drawn, minlength=40) / 1500
    torch.testing.assert_close(counts, token_probabilities(LOGITS, options), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("stop", ("a", "")),
    ],
)
def test_options_out_of_range_are_named(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{option} is .*must be"):
        GenerationOptions(**{option: value})  # type: ignore[arg-type]


def test_unknown_options_list_the_known() -> None:
    with pytest.raises(InputError, match=r"unknown generation option num_beams; known: max_new_tokens, temperature"):
        GenerationOptions.of({"num_beams": 4})
    assert GenerationOptions.of({"stop": "."}).stop == (".",)
