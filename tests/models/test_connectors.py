"""Connectors: how many layers, which neighbours are joined, what the queries read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from salticid.models import VisionLanguageConfig
from salticid.models.connectors import build_connector
from salticid.models.qformer.losses import MARKS, read_boxes


def build(tiny: Any, connector: dict[str, Any]) -> Any:
    base = tiny.config("siglip")
    torch.manual_seed(0)
    return build_connector(
        VisionLanguageConfig(
            vision_config=base.vision_config, text_config=base.text_config, connector_config=connector, image_token_id=tiny.image_id
        )
    )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"depth": 1}, ["Linear(16, 24)"]),
        ({"depth": 2}, ["Linear(16, 24)", "GELU", "Linear(24, 24)"]),
        ({"depth": 3, "hidden_size": 40}, ["Linear(16, 40)", "GELU", "Linear(40, 40)", "GELU", "Linear(40, 24)"]),
        ({"depth": 2, "activation": None}, ["Linear(16, 24)", "Linear(24, 24)"]),
        ({"depth": 2, "activation": "relu", "shuffle": 2, "norm": True}, ["Linear(64, 24)", "ReLU", "Linear(24, 24)"]),
    ],
)
def test_layers_of_the_mlp(tiny: Any, options: dict[str, Any], names: list[str]) -> None:
    connector = build(tiny, options)
    found = [f"Linear({m.in_features}, {m.out_features})" if isinstance(m, nn.Linear) else type(m).__name__ for m in connector.layers]
    assert [name.replace("GELUActivation", "GELU") for name in found] == names
    assert isinstance(connector.norm, nn.LayerNorm) is options.get("norm", False)


def test_which_neighbours_are_joined(tiny: Any) -> None:
    """Each patch of the 4 x 4 grid carries its number; the linear layer is replaced by nothing."""
    numbers = torch.arange(16.0).view(1, 16, 1).repeat(1, 1, 16)
    shuffled = build(tiny, {"depth": 1, "shuffle": 2})
    shuffled.layers = nn.Identity()
    cells = shuffled(numbers).view(4, 4, 16)[:, :, 0]  # cells, their members, one channel
    assert cells.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    pooled = build(tiny, {"depth": 1, "pool": 2})
    pooled.layers = nn.Identity()
    assert pooled(numbers)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    both = build(tiny, {"depth": 1, "pool": 2, "shuffle": 2})
    both.layers = nn.Identity()
    assert both(numbers).view(4, 16)[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_queries_read_every_patch_and_differ(tiny: Any) -> None:
    model = tiny.model("siglip", "qformer")
    features = torch.randn(2, 16, 16)
    read = model.connector(features)
    assert read.shape == (2, 3, 24)
    assert not torch.allclose(read[:, 0], read[:, 1])
    for patch in (0, 15):
        changed = features.clone()
        changed[:, patch] += 1
        assert not torch.allclose(model.connector(changed), read)
    assert_close(model.connector(features[:1]), read[:1])


def test_queries_start_different_from_each_other(tiny: Any) -> None:
    from salticid.models import VisionLanguageModel

    torch.manual_seed(0)
    queries = VisionLanguageModel(tiny.config("siglip", "qformer")).connector.query_tokens
    assert 0.01 < queries.std() < 0.03


def test_queries_say_their_boxes_to_the_linear_layers(tiny: Any) -> None:
    """The last numbers are shares of marks beyond an even one: what `read_boxes` reads, of a cell with a thing; none of an empty one."""
    config = tiny.config("siglip", "qformer").connector_config.to_dict()
    connector = build(tiny, {**config, "boxed_queries": True})
    width = connector.box_head.in_features
    assert connector.layers[0].in_features == width + 4 * MARKS
    features = torch.randn(2, 16, 16)
    with torch.no_grad():
        hidden, said = connector.read(features).split([width, 4 * MARKS], dim=-1)
        presence, edges = read_boxes(connector.box_head(hidden))
        shares = said.unflatten(-1, (4, MARKS)) / presence.sigmoid()[..., None, None] + 1 / MARKS
        assert_close(shares.sum(dim=-1), torch.ones(2, connector.query_tokens.shape[1], 4))
        assert_close(shares @ torch.linspace(0, 1, MARKS), edges)
        connector.box_head.bias[0] = -1e9
        assert not connector.read(features)[..., width:].any()
        assert connector(features).shape == (2, connector.query_tokens.shape[1], 24)
