"""Linear layers that start by saying, in the language model's words, what queries tell."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from salticid.errors import ConfigurationError
from salticid.models.qformer.losses import MARKS, marks
from salticid.models.qformer.translate import room, translate

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
GIVEN = (QUERIES_NQ, WORDS_KD, torch.where(NAMED_N, KIND_N, -1), EDGES_N4)


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
    """In the room of boxes the likeliest mark of an edge is one of the two that it lies between; and boxes vary tokens as kinds do."""
    layers = linear(QUERY, WORD)
    translate(layers, *GIVEN)
    tokens_ND = layers(QUERIES_NQ[NAMED_N])
    told_N4M = ((tokens_ND - tokens_ND.mean(dim=0)) @ room(WORD, seed=0).t()).unflatten(1, (4, MARKS))
    likeliest_N4 = told_N4M.argmax(dim=-1) / (MARKS - 1)
    assert ((likeliest_N4 - EDGES_N4[NAMED_N]).abs() <= 0.1).float().mean() > 0.7
    kinds_KD = torch.stack([tokens_ND[KIND_N[NAMED_N] == kind].mean(dim=0) for kind in range(KINDS)])
    within = (tokens_ND - kinds_KD[KIND_N[NAMED_N]]).norm(dim=1).mean()
    assert 0.5 < within / (kinds_KD - kinds_KD.mean(dim=0)).norm(dim=1).mean() < 2


@torch.no_grad()
def test_tokens_are_as_loud_as_words() -> None:
    """A name and a place, each as far from the mean word as words are."""
    layers = linear(QUERY, WORD)
    translate(layers, *GIVEN)
    mean_D = WORDS_KD.mean(dim=0)
    loud = (layers(QUERIES_NQ[NAMED_N]) - mean_D).norm(dim=1).mean()
    assert loud.item() == pytest.approx(2**0.5 * (WORDS_KD - mean_D).norm(dim=1).mean().item(), rel=1e-3)


@torch.no_grad()
def test_empty_cells_say_little() -> None:
    layers = linear(QUERY, WORD)
    translate(layers, *GIVEN)
    mean_D = WORDS_KD.mean(dim=0)
    said_N = (layers(QUERIES_NQ) - mean_D).norm(dim=1)
    assert said_N[~NAMED_N].mean() < 0.3 * said_N[NAMED_N].mean()
    elsewhere = linear(QUERY, WORD)
    queries_NQ, words_UD, names_N, edges_N4 = GIVEN
    translate(elsewhere, queries_NQ, words_UD, names_N, torch.where(NAMED_N[:, None], edges_N4, 9.0))
    assert torch.equal(elsewhere[0].weight, layers[0].weight), "what is given for cells without a thing is not read"


@pytest.mark.parametrize(
    "layers",
    [nn.Sequential(nn.Linear(QUERY, 80), nn.GELU(), nn.Linear(80, WORD)), linear(QUERY, 2, WORD), linear(QUERY, 80, 80, WORD)],
)
def test_layers_that_cannot_translate_are_refused(layers: nn.Sequential) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"two without an activation, the first {QUERY} wide at least, .* leave translated_data out"
    ):
        translate(layers, *GIVEN)
