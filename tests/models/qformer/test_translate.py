"""Linear layers that start by saying, in the language model's words, what queries tell."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from salticid.errors import ConfigurationError
from salticid.models.qformer.losses import marks
from salticid.models.qformer.translate import least_squares, translate

QUERY, WORD, KINDS, PLACES = 72, 256, 9, 44
GENERATOR = torch.Generator().manual_seed(0)
NAMES_KQ, WORDS_KD = torch.randn(KINDS, QUERY, generator=GENERATOR), torch.randn(KINDS, WORD, generator=GENERATOR) + 2
PLACES_EQ = torch.randn(PLACES, QUERY, generator=GENERATOR)
KIND_N = torch.arange(KINDS).repeat(200)
EDGES_N4 = torch.rand(len(KIND_N), 4, generator=GENERATOR)
NAMED_N = torch.arange(len(KIND_N)) % 4 != 0
# Queries tell the kind and the edges of what lies on their cell, and nothing where there is nothing.
QUERIES_NQ = NAMED_N[:, None] * (2 * NAMES_KQ[KIND_N] + marks(EDGES_N4).flatten(1) @ PLACES_EQ)
QUERIES_NQ += 0.1 * torch.randn(len(KIND_N), QUERY, generator=GENERATOR)
GIVEN = (QUERIES_NQ, WORDS_KD[KIND_N], EDGES_N4, NAMED_N)


def linear(*widths: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(before, after) for before, after in pairwise(widths)))


def rightly_named(layers: nn.Sequential) -> float:
    mean_D = WORDS_KD.mean(dim=0)
    likeness_NK = torch.cosine_similarity((layers(QUERIES_NQ[NAMED_N]) - mean_D)[:, None], WORDS_KD - mean_D, dim=-1)
    return (likeness_NK.argmax(dim=1) == KIND_N[NAMED_N]).float().mean().item()


@pytest.mark.parametrize("widths", [(QUERY, WORD), (QUERY, 80, WORD)])
@torch.no_grad()
def test_tokens_are_nearest_to_the_words_that_their_queries_name(widths: tuple[int, ...]) -> None:
    layers = linear(*widths)
    before = rightly_named(layers)
    translate(layers, *GIVEN)
    assert before < 0.4
    assert rightly_named(layers) > 0.9


@torch.no_grad()
def test_where_a_thing_is_can_be_read_from_its_token() -> None:
    """Two queries of one kind differ by their boxes alone, and by about as much as kinds do."""
    layers = linear(QUERY, WORD)
    translate(layers, *GIVEN)
    tokens_ND = layers(QUERIES_NQ[NAMED_N])
    wanted_NE = marks(EDGES_N4[NAMED_N]).flatten(1)
    reading_ED, bias_E = least_squares(tokens_ND, wanted_NE)
    assert (tokens_ND @ reading_ED.t() + bias_E - wanted_NE).square().mean() < 0.5 * wanted_NE.var(dim=0).mean()
    kinds_KD = torch.stack([tokens_ND[KIND_N[NAMED_N] == kind].mean(dim=0) for kind in range(KINDS)])
    within = (tokens_ND - kinds_KD[KIND_N[NAMED_N]]).norm(dim=1).mean()
    assert 0.5 < within / (kinds_KD - kinds_KD.mean(dim=0)).norm(dim=1).mean() < 2


@torch.no_grad()
def test_empty_cells_say_little() -> None:
    layers = linear(QUERY, WORD)
    translate(layers, *GIVEN)
    mean_D = WORDS_KD[KIND_N[NAMED_N]].mean(dim=0)
    said_N = (layers(QUERIES_NQ) - mean_D).norm(dim=1)
    assert said_N[~NAMED_N].mean() < 0.3 * said_N[NAMED_N].mean()
    elsewhere = linear(QUERY, WORD)
    queries_NQ, words_ND, edges_N4, named_N = GIVEN
    words_ND, edges_N4 = words_ND.clone(), edges_N4.clone()
    words_ND[~named_N], edges_N4[~named_N] = 9.0, 0.0
    translate(elsewhere, queries_NQ, words_ND, edges_N4, named_N)
    assert torch.equal(elsewhere[0].weight, layers[0].weight), "what is given for cells without a thing is not read"


@torch.no_grad()
def test_least_squares_find_a_map_that_is_there() -> None:
    map_DQ = torch.randn(WORD, QUERY, generator=torch.Generator().manual_seed(2))
    wanted_ND = QUERIES_NQ @ map_DQ.t() + 5
    weight_DQ, bias_D = least_squares(QUERIES_NQ, wanted_ND)
    assert_close((QUERIES_NQ @ weight_DQ.t() + bias_D).mean(dim=0), wanted_ND.mean(dim=0), rtol=0, atol=1e-3)
    assert (QUERIES_NQ @ weight_DQ.t() + bias_D - wanted_ND).square().mean() < 0.05 * wanted_ND.var(dim=0).mean()


@pytest.mark.parametrize(
    "layers",
    [nn.Sequential(nn.Linear(QUERY, 80), nn.GELU(), nn.Linear(80, WORD)), linear(QUERY, 2, WORD), linear(QUERY, 80, 80, WORD)],
)
def test_layers_that_cannot_translate_are_refused(layers: nn.Sequential) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"two without an activation, the first {QUERY} wide at least, .* leave translated_data out"
    ):
        translate(layers, *GIVEN)
