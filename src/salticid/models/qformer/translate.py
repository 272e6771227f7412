"""A start for the linear layers behind a Q-Former that knows boxes and names: tokens that say names in the language model's own words.

From what queries tell, one linear map is learned to what a token should say: of a cell with a thing its name, so that of all names' words
the thing's own are the nearest to the token as the language model embeds them; and where its box is, for which the language model has no
words, in a room of its own; of a cell without, little. Without it, a few hundred steps would have to find out which directions of a token
mean which word; and while a language model does not yet know where to look, it sees all tokens at once, where what empty cells happen to
say would drown the one that has something to tell.

N queries, Q width of the Q-Former, D width of the language model, U names, E numbers of a box.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salticid.errors import ConfigurationError
from salticid.models.qformer.losses import BOX_NUMBERS, MARKS, marks

STEPS = 600
BATCH = 1024
LEARNING_RATE = 2e-3
SHARPNESS_RATE = 2e-2
START = 0.01
"""Standard deviation of the map's numbers before it learns."""


def translate(layers: nn.Sequential, queries_NQ: Tensor, words_UD: Tensor, names_N: Tensor, boxes_N4: Tensor, seed: int = 0) -> None:
    """Set linear layers (one, or two without an activation) to say what queries tell.

    Args:
        queries_NQ: what each query told. words_UD: the mean embedding of each name's words. names_N: which of them lies on the query's
            cell, -1 where none does. boxes_N4: its box by edges, as fractions of the photo's sides, not read where there is none.
        seed: of the directions that boxes get, and of the order of what is learned.

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
    mean_D = words_UD.mean(dim=0)
    whole_DQ, bias_D = _learned(queries_NQ.float(), words_UD.float() - mean_D, names_N, boxes_N4, seed)
    with torch.no_grad():
        loud = F.linear(queries_NQ[names_N >= 0].float(), whole_DQ, bias_D).norm(dim=1).mean()
        scale = (words_UD - mean_D).norm(dim=1).mean() * 2**0.5 / loud  # as loud as a word that says as much of something else
        _set(linear, whole_DQ * scale, mean_D + bias_D * scale)


def room(width: int, seed: int) -> Tensor:
    """The directions (E, D) of a token that say where a box is: one for each mark that an edge can lie on."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(BOX_NUMBERS - 1, width, generator=generator), dim=1)


@torch.enable_grad()
def _learned(queries_NQ: Tensor, words_UD: Tensor, names_N: Tensor, boxes_N4: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Weight (D, Q) and bias (D,) whose tokens are told apart by name and by box, each by cross-entropy, and say little of empty cells."""
    generator = torch.Generator().manual_seed(seed)
    words_UD, room_ED = F.normalize(words_UD, dim=1), room(words_UD.shape[1], seed)
    weight_DQ = nn.Parameter(torch.randn(words_UD.shape[1], queries_NQ.shape[1], generator=generator) * START)
    bias_D = nn.Parameter(torch.zeros(len(weight_DQ)))
    sharpness_2 = nn.Parameter(torch.tensor([2.5, 1.0]))
    groups: list[dict[str, Any]] = [{"params": [weight_DQ, bias_D]}, {"params": [sharpness_2], "lr": SHARPNESS_RATE}]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        drawn = torch.randint(len(queries_NQ), (BATCH,), generator=generator)
        taken = names_N[drawn] >= 0
        tokens_ND = F.linear(queries_NQ[drawn], weight_DQ, bias_D)
        told_MD, names_M, boxes_M4 = tokens_ND[taken], names_N[drawn][taken], boxes_N4[drawn][taken]
        if not len(told_MD):
            continue
        to_name, to_mark = sharpness_2.exp()
        name = F.cross_entropy(to_name * F.normalize(told_MD, dim=1) @ words_UD.t(), names_M, label_smoothing=0.05)
        edges = F.cross_entropy((to_mark * told_MD @ room_ED.t()).view(-1, MARKS), marks(boxes_M4).view(-1, MARKS))
        empty = tokens_ND[~taken].square().sum() / max(int((~taken).sum()), 1)
        loss = name + edges + empty / told_MD.square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight_DQ.detach(), bias_D.detach()


def _set(linear: list[nn.Linear], whole_DQ: Tensor, bias_D: Tensor) -> None:
    last, width = linear[-1], whole_DQ.shape[1]
    last.bias.copy_(bias_D)
    if len(linear) == 1:
        last.weight.copy_(whole_DQ)
        return
    even = (whole_DQ.square().sum() / width).sqrt().sqrt()  # both layers learn at one rate: neither may be far the larger
    linear[0].weight[:width] = torch.eye(width) * even
    linear[0].bias[:width] = 0
    last.weight.zero_()  # what the first layer draws by chance beside it would be louder than the words
    last.weight[:, :width] = whole_DQ / even
