"""A start for the linear layers behind a Q-Former that knows boxes and names: its tokens say names in the language model's own words.

Such queries tell names as vectors that lie near those of the names as texts (`boxed_queries`). Where every name has an embedding in the
language model, too, least squares find the linear map from the one to the other; without it, a few hundred steps of captions would have to
find out which of the tokens' directions mean which word. What queries tell of boxes is given room beside the names, as large as they are.

N names, P projection, Q width of the Q-Former, D width of the language model, E numbers that tell a box.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from salticid.errors import ConfigurationError
from salticid.models.qformer.losses import MARKS
from salticid.models.qformer.pretraining import QFormerPretrainingModel

RIDGE = 0.1
"""Of the projection's mean variance, that least squares add to each direction's own."""


@torch.no_grad()
def translate(layers: nn.Sequential, trained: QFormerPretrainingModel, names_NP: Tensor, words_ND: Tensor, seed: int = 0) -> None:
    """Set linear layers (one, or two without an activation) to say what `trained`'s queries tell.

    Args:
        names_NP: names as `trained` embeds texts; words_ND: the same names as the language model embeds words, mean over each name's.
        seed: of the directions that boxes get, for which the language model has none.

    Raises:
        ConfigurationError: the queries know no boxes, or the layers are of other kinds, or too narrow.
    """
    if trained.box_head is None:
        raise ConfigurationError("these queries know no names that could be translated; give a Q-Former with model.boxed_queries")
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    width = trained.vision_projection.in_features
    if len(linear) != len(layers) or len(linear) > 2 or linear[0].out_features < min(width, linear[-1].out_features):
        raise ConfigurationError(f"a translation takes one or two linear layers, without activation and {width} wide at least")
    scale_Q, shift_Q = _last_norm(trained)
    mean_D = words_ND.mean(dim=0)
    names = trained.vision_projection
    words = least_squares(names_NP, words_ND - mean_D)
    told_P = names.weight @ shift_Q + names.bias
    length = ((names.weight * scale_Q).square().sum() + told_P.square().sum()).sqrt()
    whole_DQ = words @ (names.weight / length)
    bias_D = mean_D + words @ ((names.bias / length) - names_NP.mean(dim=0))

    edges_EQ = _relative(trained.box_head.weight)
    room_DE = torch.randn(len(whole_DQ), len(edges_EQ), generator=torch.Generator().manual_seed(seed)) / len(whole_DQ) ** 0.5
    loudness = (words_ND - mean_D).norm(dim=1).mean() / (edges_EQ * scale_Q).norm().clamp(min=torch.finfo(torch.float32).eps)
    boxes_DQ = room_DE @ edges_EQ * loudness
    whole_DQ = whole_DQ + boxes_DQ
    bias_D = bias_D - boxes_DQ @ shift_Q

    last = linear[-1]
    last.bias.copy_(bias_D)
    if len(linear) == 1:
        last.weight.copy_(whole_DQ)
        return
    even = (whole_DQ.square().sum() / width).sqrt().sqrt()  # both layers learn at one rate: neither may be far the larger
    linear[0].weight[:width] = torch.eye(width) * even
    linear[0].bias[:width] = 0
    last.weight[:, :width] = whole_DQ / even


def least_squares(names_NP: Tensor, words_ND: Tensor) -> Tensor:
    """(D, P), the ridge regression of words on names, both about their means."""
    centred_NP = names_NP - names_NP.mean(dim=0)
    spread_PP = centred_NP.t() @ centred_NP
    spread_PP += torch.eye(len(spread_PP)) * RIDGE * spread_PP.diagonal().mean()
    return cast(Tensor, torch.linalg.solve(spread_PP, centred_NP.t() @ words_ND).t())


def _last_norm(trained: QFormerPretrainingModel) -> tuple[Tensor, Tensor]:
    """Weight and bias of the norm that gives the queries: about how far each of their numbers goes, and around what."""
    last: Any = trained.qformer.encoder.layer[-1]
    norm = last.output_query.LayerNorm
    return norm.weight, norm.bias


def _relative(weight_EQ: Tensor) -> Tensor:
    """Of each edge's marks only their differences count."""
    edges_4MQ = weight_EQ[1:].unflatten(0, (4, MARKS))
    return torch.cat([weight_EQ[:1], (edges_4MQ - edges_4MQ.mean(dim=1, keepdim=True)).flatten(0, 1)])
