"""The BLIP-2 Q-Former connector, followed by linear layers (TinyGPT-V, MiniGPT-4)."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from salticid.models.configuration import VisionLanguageConfig
from salticid.models.connectors.mlp import linear_layers
from salticid.models.qformer.losses import BOX_NUMBERS, MARKS, say_boxes


class QFormerConnector(nn.Module):
    """Learned queries read the image by cross-attention (BLIP-2, arXiv 2301.12597, section 3.1), then linear layers.

    TinyGPT-V (arXiv 2312.16862, section 3.1): 32 queries of width 768, linear 768 -> 4096, linear 4096 -> 2560.
    """

    def __init__(self, config: VisionLanguageConfig):
        super().__init__()
        connector = config.connector_config
        width = connector.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, connector.queries, width))
        self.qformer = transformers.Blip2QFormerModel(connector.qformer_config)
        self.box_head = nn.Linear(width, BOX_NUMBERS) if connector.boxed_queries else None
        self.layers = linear_layers(connector, width + 4 * MARKS * connector.boxed_queries, config.text_config.hidden_size)

    def forward(self, features_IND: torch.Tensor) -> torch.Tensor:
        """(I, N, D_vision) -> (I, queries, D_text)."""
        return self.layers(self.read(features_IND))

    def read(self, features_IND: torch.Tensor) -> torch.Tensor:
        """What queries tell, (I, N, D_vision) -> (I, queries, D); with `boxed_queries` the last 4 x `MARKS` numbers are their boxes."""
        queries_IQD = self.query_tokens.expand(features_IND.shape[0], -1, -1)
        told_IQD = self.qformer(query_embeds=queries_IQD, encoder_hidden_states=features_IND).last_hidden_state
        if self.box_head is None:
            return told_IQD
        return torch.cat([told_IQD, say_boxes(self.box_head(told_IQD))], dim=-1)
