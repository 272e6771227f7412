"""Linear layers that start by saying, in the language model's words, what queries tell."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from salticid.errors import ConfigurationError
from salticid.models.qformer.losses import MARKS, marks, say_boxes
from salticid.models.qformer.translate import room, translate

HIDDEN, WORD, KINDS = 72, 256, 9
QUERY = HIDDEN + 4 * MARKS
GENERATOR = torch.Generator().manual_seed(0)
NAMES_KQ, WORDS_KD = torch.randn(KINDS, HIDDEN, generator=GENERATOR), torch.randn(KINDS, WORD, generator=GENERATOR) + 2
NUMBERS_MD = torch.randn(MARKS, WORD, generator=GENERATOR) + 2
KIND_N = torch.arange(KINDS).repeat(200)
EDGES_N4 = torch.rand(len(KIND_N), 4, generator=GENERATOR)
NAMED_N = torch.arange(len(KIND_N)) % 4 != 0
# Queries tell the kind and the edges of what lies on their cell, and nothing where there is nothing.
SAID_NE = say_boxes(torch.cat([20.0 * NAMED_N[:, None] - 10, (marks(EDGES_N4) + 1e-3).log().flatten(1)], dim=1))
HIDDEN_NQ = 2 * NAMED_N[:, None] * NAMES_KQ[KIND_N] + 0.1 * torch.randn(len(KIND_N), HIDDEN, generator=GENERATOR)
QUERIES_NQ = torch.cat([HIDDEN_NQ, SAID_NE], dim=1)
GIVEN = (QUERIES_NQ, WORDS_KD, NUMBERS_MD, torch.where(NAMED_N, KIND_N, -1))


def linear(*widths: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(before, after) for before, after in pairwise(widths)))


def rightly_named(layers: nn.Sequential) -> float:
    mean_D = WORDS_KD.mean(dim=0)
    likeness_NK = torch.cosine_similarity((layers(QUERIES_NQ[NAMED_N]) - mean_D)[:, None], WORDS_KD - mean_D, dim=-1)
    return (likeness_NK.argmax(dim=1) == KIND_N[NAMED_N]).float().mean().item()


@pytest.mark.parametrize("widths", [(QUERY, WORD), (QUERY, 120, WORD)])
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
    told_N4M = ((tokens_ND - tokens_ND.mean(dim=0)) @ torch.linalg.pinv(room(NUMBERS_MD, seed=0))).unflatten(1, (4, MARKS))
    likeliest_N4 = told_N4M.argmax(dim=-1) / (MARKS - 1)
    assert ((likeliest_N4 - EDGES_N4[NAMED_N]).abs() <= 0.1).float().mean() > 0.7
    kinds_KD = torch.stack([tokens_ND[KIND_N[NAMED_N] == kind].mean(dim=0) for kind in range(KINDS)])
    within = (tokens_ND - kinds_KD[KIND_N[NAMED_N]]).norm(dim=1).mean()
    assert 0.5 < within / (kinds_KD - kinds_KD.mean(dim=0)).norm(dim=1).mean() < 2


@torch.no_grad()
def test_tokens_are_as_loud_as_words() -> None:
    """A name and a place, each about as far from the mean word as words are."""
    layers = linear(QUERY, WORD)
    translate(layers, *GIVEN)
    mean_D = WORDS_KD.mean(dim=0)
    loud = (layers(QUERIES_NQ[NAMED_N]) - mean_D).norm(dim=1).mean()
    assert loud.item() == pytest.approx(2**0.5 * (WORDS_KD - mean_D).norm(dim=1).mean().item(), rel=0.1)


@torch.no_grad()
def test_the_numbers_of_a_box_can_be_copied_from_its_token() -> None:
    """A number that is written for one of a thing's edges is louder in its token than one that is not."""
    layers = linear(QUERY, WORD)
    translate(layers, *GIVEN)
    tokens_ND, numbers_MD = layers(QUERIES_NQ[NAMED_N]), NUMBERS_MD - NUMBERS_MD.mean(dim=0)
    loud_NM = (tokens_ND - tokens_ND.mean(dim=0)) @ numbers_MD.t()
    written_NM = (marks(EDGES_N4[NAMED_N]) > 0.5).any(dim=1)
    assert loud_NM[written_NM].mean() > loud_NM[~written_NM].mean() + loud_NM.std()


@torch.no_grad()
def test_empty_cells_say_little() -> None:
    layers = linear(QUERY, WORD)
    translate(layers, *GIVEN)
    mean_D = WORDS_KD.mean(dim=0)
    said_N = (layers(QUERIES_NQ) - mean_D).norm(dim=1)
    assert said_N[~NAMED_N].mean() < 0.3 * said_N[NAMED_N].mean()


@pytest.mark.parametrize(
    "layers",
    [nn.Sequential(nn.Linear(QUERY, 120), nn.GELU(), nn.Linear(120, WORD)), linear(QUERY, 2, WORD), linear(QUERY, 120, 120, WORD)],
)
def test_layers_that_cannot_translate_are_refused(layers: nn.Sequential) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"two without an activation, the first {QUERY} wide at least, .* leave translated_data out"
    ):
        translate(layers, *GIVEN)
