"""A start for the linear layers behind a Q-Former with boxed queries: tokens that say names in the language model's own words.

One linear map from what queries tell to what a token should say: of a cell with a thing its name, learned so that of all names' words the
thing's own are the nearest to the token as the language model embeds them; and where its box is, by a direction for each mark that an edge
can lie on, which contains the embedding of the number to be written; of a cell without, little. Without it, a few hundred steps would have
to find out which directions of a token mean which word; and while a language model does not yet know where to look, it sees all tokens at
once, where what empty cells happen to say would drown the one that has something to tell.

N queries, Q width of what they tell, the last E = 4 M of it their boxes (`say_boxes`), D width of the language model, U names, M marks
along a side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salticid.errors import ConfigurationError

STEPS = 600
BATCH = 1024
LEARNING_RATE = 2e-3
SHARPNESS_RATE = 2e-2
START = 0.01
"""Standard deviation of the map's numbers before it learns."""
OWN_SHARE = 0.7
"""Length of what tells one edge's mark from another's, beside the number that is written for both."""


def translate(layers: nn.Sequential, queries_NQ: Tensor, words_UD: Tensor, numbers_MD: Tensor, names_N: Tensor, seed: int = 0) -> None:
    """Set linear layers (one, or two without an activation) to say what queries tell.

    Args:
        queries_NQ: what each query told. words_UD: the mean embedding of each name's words. numbers_MD: the embedding that each mark's
            number begins with. names_N: which name lies on the query's cell, or -1.
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
    mean_D = words_UD.float().mean(dim=0)
    words_UD = words_UD.float() - mean_D
    hidden_NQ, boxes_NE = queries_NQ.float().split([width - 4 * len(numbers_MD), 4 * len(numbers_MD)], dim=1)
    naming = _learned(hidden_NQ, words_UD, names_N, seed)
    room_ED = room(numbers_MD, seed)
    with torch.no_grad():
        there, loud = names_N >= 0, words_UD.norm(dim=1).mean()  # a name is as loud as a word, and so is a box
        by_name = loud / naming(hidden_NQ[there]).norm(dim=1).mean()
        by_box = loud / (boxes_NE[there] @ room_ED).norm(dim=1).mean()
        _set(linear, torch.cat([naming.weight * by_name, room_ED.t() * by_box], dim=1), mean_D + naming.bias * by_name)


def room(numbers_MD: Tensor, seed: int) -> Tensor:
    """The directions (E, D) of a token that say where a box is: one for each mark that each edge can lie on.

    Each is the mark's number, which is the same for all edges and can be copied into an answer, and what is drawn for this mark and edge.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn_4MD = F.normalize(torch.randn(4, *numbers_MD.shape, generator=generator), dim=-1)
    numbers_MD = F.normalize(numbers_MD.float() - numbers_MD.float().mean(dim=0), dim=1)
    return F.normalize(numbers_MD + OWN_SHARE * drawn_4MD, dim=-1).flatten(0, 1)


@torch.enable_grad()
def _learned(hidden_NQ: Tensor, words_UD: Tensor, names_N: Tensor, seed: int) -> nn.Linear:
    """What points from queries to their names' words, by cross-entropy, and says little of empty cells."""
    generator = torch.Generator().manual_seed(seed)
    words_UD = F.normalize(words_UD, dim=1)
    naming = nn.Linear(hidden_NQ.shape[1], words_UD.shape[1])
    nn.init.normal_(naming.weight, std=START, generator=generator)
    nn.init.zeros_(naming.bias)
    sharpness = nn.Parameter(torch.tensor(2.5))
    groups: list[dict[str, Any]] = [{"params": list(naming.parameters())}, {"params": [sharpness], "lr": SHARPNESS_RATE}]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        drawn = torch.randint(len(hidden_NQ), (BATCH,), generator=generator)
        there = names_N[drawn] >= 0
        if not there.any():
            continue
        said_ND = naming(hidden_NQ[drawn])
        likeness_NU = F.normalize(said_ND[there], dim=1) @ words_UD.t()
        name = F.cross_entropy(sharpness.exp() * likeness_NU, names_N[drawn][there], label_smoothing=0.05)
        empty = said_ND[~there].square().sum() / max(int((~there).sum()), 1)
        loss = name + empty / said_ND[there].square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return naming


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
