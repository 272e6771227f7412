"""Linear layers that start by saying, in the language model's words, what queries tell."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from salticid.errors import ConfigurationError
from salticid.models.qformer.losses import BOX_NUMBERS
from salticid.models.qformer.translate import least_squares, translate

QUERY, WORD, KINDS = 12, 96, 9
GENERATOR = torch.Generator().manual_seed(0)
NAMES_KQ, WORDS_KD = torch.randn(KINDS, QUERY, generator=GENERATOR) * 3, torch.randn(KINDS, WORD, generator=GENERATOR) + 2
KIND_N = torch.arange(KINDS).repeat(40)
QUERIES_NQ = NAMES_KQ[KIND_N] + torch.randn(len(KIND_N), QUERY, generator=GENERATOR)
BOXES_EQ = torch.randn(BOX_NUMBERS, QUERY, generator=GENERATOR)


def linear(*widths: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(before, after) for before, after in pairwise(widths)))


@pytest.mark.parametrize("widths", [(QUERY, WORD), (QUERY, 20, WORD)])
@torch.no_grad()
def test_tokens_are_nearest_to_the_words_that_their_queries_name(widths: tuple[int, ...]) -> None:
    layers = linear(*widths)
    before = _named_rightly(layers)
    translate(layers, QUERIES_NQ, WORDS_KD[KIND_N], BOXES_EQ)
    assert before < 0.4
    assert _named_rightly(layers) > 0.9
    tokens_ND = layers(QUERIES_NQ)
    assert_close(tokens_ND.mean(dim=0), WORDS_KD.mean(dim=0), rtol=0, atol=1e-3)
    spread = (tokens_ND - tokens_ND.mean(dim=0)).norm(dim=1).mean() / (WORDS_KD - WORDS_KD.mean(dim=0)).norm(dim=1).mean()
    assert 0.7 < spread < 2


def _named_rightly(layers: nn.Sequential) -> float:
    likeness_NK = torch.cosine_similarity((layers(QUERIES_NQ) - WORDS_KD.mean(dim=0))[:, None], WORDS_KD - WORDS_KD.mean(dim=0), dim=-1)
    return (likeness_NK.argmax(dim=1) == KIND_N).float().mean().item()


@torch.no_grad()
def test_boxes_are_told_as_loudly_as_names() -> None:
    both = linear(QUERY, WORD)
    translate(both, QUERIES_NQ, WORDS_KD[KIND_N], BOXES_EQ)
    words_DQ = least_squares(QUERIES_NQ - QUERIES_NQ.mean(dim=0), WORDS_KD[KIND_N] - WORDS_KD.mean(dim=0))
    centred_NQ = QUERIES_NQ - QUERIES_NQ.mean(dim=0)
    boxes_DQ = both[0].weight - words_DQ
    assert_close((centred_NQ @ boxes_DQ.t()).norm(dim=1).mean(), (centred_NQ @ words_DQ.t()).norm(dim=1).mean())
    raised = BOXES_EQ.clone()
    raised[1:12] += 1.0  # all marks of one edge alike: the edge stays where it was
    again = linear(QUERY, WORD)
    translate(again, QUERIES_NQ, WORDS_KD[KIND_N], raised)
    assert_close(again[0].weight, both[0].weight)


@torch.no_grad()
def test_least_squares_find_a_map_that_is_there() -> None:
    map_DQ = torch.randn(WORD, QUERY, generator=torch.Generator().manual_seed(2))
    given_NQ = QUERIES_NQ - QUERIES_NQ.mean(dim=0)
    left_ND = given_NQ @ (map_DQ - least_squares(given_NQ, given_NQ @ map_DQ.t())).t()
    assert left_ND.square().mean() < 0.05 * (given_NQ @ map_DQ.t()).square().mean()


@pytest.mark.parametrize(
    "layers",
    [nn.Sequential(nn.Linear(QUERY, 48), nn.GELU(), nn.Linear(48, WORD)), linear(QUERY, 2, WORD), linear(QUERY, 20, 20, WORD)],
)
def test_layers_that_cannot_translate_are_refused(layers: nn.Sequential) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"two without an activation, the first {QUERY} wide at least, .* leave translated_data out"
    ):
        translate(layers, QUERIES_NQ, WORDS_KD[KIND_N], BOXES_EQ)
