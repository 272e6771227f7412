"""A start for the linear layers behind a Q-Former that knows boxes and names: its tokens say names in the language model's own words.

From what queries tell of cells with a thing, least squares find the linear map to how the language model embeds the thing's name; without
it, a few hundred steps of captions would have to find out which directions of a token mean which word. What queries tell of boxes, for
which a language model has no words, is given room of its own, as loud as names.

N queries that have a thing on their cell, Q width of the Q-Former, D width of the language model, E numbers that tell a box.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from salticid.errors import ConfigurationError
from salticid.models.qformer.losses import MARKS

RIDGE = 0.1
"""Of the mean variance of a query's numbers, that least squares add to each direction's own."""


@torch.no_grad()
def translate(layers: nn.Sequential, queries_NQ: Tensor, words_ND: Tensor, boxes_EQ: Tensor, seed: int = 0) -> None:
    """Set linear layers (one, or two without an activation) to say what queries tell.

    Args:
        queries_NQ: what each query told; words_ND: the mean embedding of the words of its thing's name.
        boxes_EQ: the weight with which a box is read from queries (`box_head` of a `QFormerPretrainingModel`).
        seed: of the directions that boxes get.

    Raises:
        ConfigurationError: the layers are of other kinds, or too narrow.
    """
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    width = queries_NQ.shape[1]
    if len(linear) != len(layers) or len(linear) > 2 or (len(linear) == 2 and linear[0].out_features < width):
        raise ConfigurationError(
            f"only one linear layer, or two without an activation, the first {width} wide at least, can start as a translation; "
            "change the connector, or leave translated_data out"
        )
    centred_NQ, mean_D = queries_NQ - queries_NQ.mean(dim=0), words_ND.mean(dim=0)
    words_DQ = least_squares(centred_NQ, words_ND - mean_D)
    told_EQ = _relative(boxes_EQ)
    room_DE = torch.randn(len(mean_D), len(told_EQ), generator=torch.Generator().manual_seed(seed))
    boxes_DQ = room_DE @ told_EQ
    loudness = _length(centred_NQ @ words_DQ.t()) / _length(centred_NQ @ boxes_DQ.t())
    whole_DQ = words_DQ + loudness * boxes_DQ

    last = linear[-1]
    last.bias.copy_(mean_D - whole_DQ @ queries_NQ.mean(dim=0))
    if len(linear) == 1:
        last.weight.copy_(whole_DQ)
        return
    even = (whole_DQ.square().sum() / width).sqrt().sqrt()  # both layers learn at one rate: neither may be far the larger
    linear[0].weight[:width] = torch.eye(width) * even
    linear[0].bias[:width] = 0
    last.weight.zero_()  # what the first layer draws by chance beside it would be louder than the words
    last.weight[:, :width] = whole_DQ / even


def least_squares(given_NQ: Tensor, wanted_ND: Tensor) -> Tensor:
    """(D, Q), the ridge regression of what is wanted on what is given, both about their means."""
    spread_QQ = given_NQ.t() @ given_NQ
    spread_QQ += torch.eye(len(spread_QQ)) * RIDGE * spread_QQ.diagonal().mean()
    return cast(Tensor, torch.linalg.solve(spread_QQ, given_NQ.t() @ wanted_ND).t())


def _relative(boxes_EQ: Tensor) -> Tensor:
    """Of each edge's marks only their differences count."""
    edges_4MQ = boxes_EQ[1:].unflatten(0, (4, MARKS))
    return torch.cat([boxes_EQ[:1], (edges_4MQ - edges_4MQ.mean(dim=1, keepdim=True)).flatten(0, 1)])


def _length(vectors_ND: Tensor) -> Tensor:
    return vectors_ND.norm(dim=1).mean()
