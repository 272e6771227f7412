"""A start for the linear layers behind a Q-Former that knows boxes and names: tokens that say names in the language model's own words.

From what queries tell, least squares find the linear map to what a token should say: of a cell with a thing how the language model embeds
the thing's name, and where its box is, for which it has no words, in a room of its own and as loud; of a cell without, nothing. Without it,
a few hundred steps would have to find out which directions of a token mean which word; and while a language model does not yet know where
to look, it sees all tokens at once, where what empty cells happen to say would drown the one that has something to tell.

N queries, Q width of the Q-Former, D width of the language model.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from salticid.errors import ConfigurationError
from salticid.models.qformer.losses import marks

RIDGE = 0.1
"""Of the mean variance of a query's numbers, that least squares add to each direction's own."""


@torch.no_grad()
def translate(layers: nn.Sequential, queries_NQ: Tensor, words_ND: Tensor, boxes_N4: Tensor, named_N: Tensor, seed: int = 0) -> None:
    """Set linear layers (one, or two without an activation) to say what queries tell.

    Args:
        queries_NQ: what each query told; named_N: whether a thing with a name lies on its cell; words_ND: the mean embedding of that name's
            words; boxes_N4: its box by edges, as fractions of the photo's sides. Of the others neither word nor box is read.
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
    mean_D = words_ND[named_N].mean(dim=0)
    names_ND = words_ND[named_N] - mean_D
    marks_NE = marks(boxes_N4[named_N]).flatten(1)
    marks_NE = marks_NE - marks_NE.mean(dim=0)
    room_ED = torch.randn(marks_NE.shape[1], len(mean_D), generator=torch.Generator().manual_seed(seed))
    places_ND = marks_NE @ room_ED
    said_ND = torch.zeros_like(words_ND)
    said_ND[named_N] = names_ND + places_ND * names_ND.norm(dim=1).mean() / places_ND.norm(dim=1).mean()
    whole_DQ, bias_D = least_squares(queries_NQ, said_ND)

    last = linear[-1]
    last.bias.copy_(mean_D + bias_D)
    if len(linear) == 1:
        last.weight.copy_(whole_DQ)
        return
    even = (whole_DQ.square().sum() / width).sqrt().sqrt()  # both layers learn at one rate: neither may be far the larger
    linear[0].weight[:width] = torch.eye(width) * even
    linear[0].bias[:width] = 0
    last.weight.zero_()  # what the first layer draws by chance beside it would be louder than the words
    last.weight[:, :width] = whole_DQ / even


def least_squares(given_NQ: Tensor, wanted_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (D, Q) and bias (D,) of the ridge regression of what is wanted on what is given."""
    given_Q, wanted_D = given_NQ.mean(dim=0), wanted_ND.mean(dim=0)
    centred_NQ = given_NQ - given_Q
    spread_QQ = centred_NQ.t() @ centred_NQ
    spread_QQ += torch.eye(len(spread_QQ)) * RIDGE * spread_QQ.diagonal().mean()
    weight_DQ = cast(Tensor, torch.linalg.solve(spread_QQ, centred_NQ.t() @ (wanted_ND - wanted_D)).t())
    return weight_DQ, wanted_D - weight_DQ @ given_Q
