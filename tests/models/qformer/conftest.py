"""A Q-Former in training small enough for a test, and a batch of photos with captions for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from salticid.models.qformer import QFormerPretrainingConfig, QFormerPretrainingModel

CLASS, END, START, PADDING, VOCABULARY = 1, 2, 29, 0, 30


@pytest.fixture
def qformer_config() -> Callable[..., QFormerPretrainingConfig]:
    """Four queries, three layers of which two read the photo; `changes` are of the Q-Former."""

    def build(**changes: Any) -> QFormerPretrainingConfig:
        small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "encoder_hidden_size": 1280}
        return QFormerPretrainingConfig(
            vision_config={"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64},
            connector_config={
                "kind": "qformer",
                "queries": 4,
                "depth": 1,
                "qformer_config": {**small, "max_position_embeddings": 12, "initializer_range": 0.3, **changes},
            },
            vocab_size=VOCABULARY,
            pad_token_id=PADDING,
            start_token_id=START,
            projection_size=8,
        )

    return build


@pytest.fixture
def qformer(qformer_config: Callable[..., QFormerPretrainingConfig]) -> QFormerPretrainingModel:
    torch.manual_seed(0)
    return QFormerPretrainingModel(qformer_config()).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Features of three photos (3, 4, 1280), and a caption of each, 7, 5 and 6 tokens long."""
    chance = torch.Generator().manual_seed(1)
    lengths = torch.tensor([7, 5, 6])
    ids = torch.randint(3, START, (3, 7), generator=chance)
    places = torch.arange(7)
    ids[:, 0] = CLASS
    ids[places == lengths[:, None] - 1] = END
    mask = (places < lengths[:, None]).long()
    return {
        "image_features": torch.randn(3, 4, 1280, generator=chance),
        "input_ids": ids.masked_fill(mask == 0, PADDING),
        "attention_mask": mask,
    }
