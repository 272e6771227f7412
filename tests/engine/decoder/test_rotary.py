from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from salticid.engine.decoder.rotary import BLOCK, RotaryTable, rotate


@pytest.fixture
def module() -> LlamaRotaryEmbedding:
    return LlamaRotaryEmbedding(LlamaConfig(hidden_size=32, num_attention_heads=4))


@pytest.mark.parametrize("positions", [[0, 1, 2], [BLOCK - 1, BLOCK, BLOCK + 1], [5, 3 * BLOCK, 0]])
def test_turns_as_transformers_does(module: LlamaRotaryEmbedding, positions: list[int]) -> None:
    table, x = RotaryTable(module, torch.float32, torch.device("cpu")), torch.randn(3, 4, 8)
    places = torch.tensor(positions)
    expected, _ = apply_rotary_pos_emb(x[None].transpose(1, 2), x[None].transpose(1, 2), *module(x, places[None]))
    expected = expected[0].transpose(0, 1)
    assert_close(rotate(x, table.at(places, max(positions) + 1)), expected)
    if positions[2] == positions[0] + 2:
        assert_close(rotate(x, table.span(positions[0], 3)), expected)


def test_channels_beyond_the_table_stay(module: LlamaRotaryEmbedding) -> None:
    table, x = RotaryTable(module, torch.float32, torch.device("cpu")), torch.randn(3, 4, 12)
    turn = table.span(7, 3)
    assert torch.equal(rotate(x, turn)[..., 8:], x[..., 8:])
    assert_close(rotate(x, turn)[..., :8], rotate(x[..., :8].contiguous(), turn))
