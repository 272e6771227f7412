"""Linear layers that start by saying, in the language model's words, what queries tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from salticid.errors import ConfigurationError
from salticid.models.qformer import QFormerPretrainingConfig, QFormerPretrainingModel
from salticid.models.qformer.translate import least_squares, translate

WORDS = 24


@pytest.fixture
def trained(qformer_config: Callable[..., QFormerPretrainingConfig]) -> QFormerPretrainingModel:
    values = {**qformer_config().to_dict(), "local_queries": True, "boxed_queries": True}
    torch.manual_seed(0)
    return QFormerPretrainingModel(QFormerPretrainingConfig(**values)).eval()


def vocabulary(trained: QFormerPretrainingModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Names on the unit sphere, and words that are a linear map of them, so that they can be translated without loss."""
    generator = torch.Generator().manual_seed(1)
    projection = trained.config.projection_size
    names_NP = nn.functional.normalize(torch.randn(400, projection, generator=generator), dim=-1)
    return names_NP, names_NP @ torch.randn(projection, WORDS, generator=generator) + 3


@pytest.mark.parametrize("sizes", [(WORDS,), (48, WORDS)])
@torch.no_grad()
def test_a_token_is_nearest_to_the_word_that_its_query_names(trained: QFormerPretrainingModel, sizes: tuple[int, ...]) -> None:
    names_NP, words_ND = vocabulary(trained)
    width = trained.vision_projection.in_features
    assert width <= 48
    layers = nn.Sequential(*(nn.Linear(before, after) for before, after in zip((width, *sizes), sizes, strict=False)))
    for layer in layers:
        nn.init.normal_(layer.weight, std=1e-4)
    trained.box_head.weight.zero_()  # what boxes add would hide words so few numbers wide
    translate(layers, trained, names_NP, words_ND)
    saying_NQ = torch.linalg.lstsq(trained.vision_projection.weight, (names_NP - trained.vision_projection.bias).t()).solution.t()
    centred_ND = words_ND - words_ND.mean(dim=0)
    likeness_NN = torch.cosine_similarity((layers(saying_NQ) - words_ND.mean(dim=0))[:, None], centred_ND[None], dim=-1)
    assert (likeness_NN.argmax(dim=1) == torch.arange(len(names_NP))).float().mean() > 0.95


@torch.no_grad()
def test_boxes_are_told_beside_names(trained: QFormerPretrainingModel) -> None:
    """What differs in queries by their boxes alone differs in tokens, and about as much as words do."""
    names_NP, words_ND = vocabulary(trained)
    layers = nn.Sequential(nn.Linear(trained.vision_projection.in_features, WORDS))
    translate(layers, trained, names_NP, words_ND)
    generator = torch.Generator().manual_seed(3)
    states_NQ = torch.randn(400, trained.vision_projection.in_features, generator=generator)
    naming = trained.vision_projection.weight
    nameless_NQ = states_NQ - states_NQ @ (torch.linalg.pinv(naming) @ naming).t()
    moved = (layers(nameless_NQ) - layers(torch.zeros_like(nameless_NQ))).norm(dim=1).mean()
    assert 0.3 < moved / (words_ND - words_ND.mean(dim=0)).norm(dim=1).mean() < 3


@torch.no_grad()
def test_least_squares_find_a_map_that_is_there(trained: QFormerPretrainingModel) -> None:
    names_NP, words_ND = vocabulary(trained)
    map_DP = least_squares(names_NP, words_ND - words_ND.mean(dim=0))
    told_ND = (names_NP - names_NP.mean(dim=0)) @ map_DP.t()
    assert (told_ND - (words_ND - words_ND.mean(dim=0))).square().mean() < 0.05 * words_ND.var(dim=0).mean()


def test_what_cannot_be_translated_is_refused(
    trained: QFormerPretrainingModel, qformer: QFormerPretrainingModel
) -> None:
    names_NP, words_ND = vocabulary(trained)
    width = trained.vision_projection.in_features
    with pytest.raises(ConfigurationError, match=r"know no names that could be translated; give a Q-Former with model\.boxed_queries"):
        translate(nn.Sequential(nn.Linear(width, WORDS)), qformer, names_NP, words_ND)
    for layers in (
        nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, WORDS)),
        nn.Sequential(nn.Linear(width, 2), nn.Linear(2, WORDS)),
    ):
        with pytest.raises(ConfigurationError, match=f"without activation and {width} wide at least"):
            translate(layers, trained, names_NP, words_ND)
