"""Linear, `mlpNx_gelu`, pixel-shuffle and average-pool connectors: one class, chosen by numbers."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN

from salticid.models.configuration import ConnectorConfig, VisionLanguageConfig


def linear_layers(connector: ConnectorConfig, width_in: int, width_out: int) -> nn.Sequential:
    """`depth` linear layers with the activation between them, never after the last (LLaVA's numbering: 0, 2, 4, ...)."""
    layers: list[nn.Module] = []
    for index in range(connector.depth):
        last = index == connector.depth - 1
        wide = width_out if last else connector.hidden_size or width_out
        layers.append(nn.Linear(width_in, wide))
        if connector.activation is not None and not last:
            layers.append(ACT2FN[connector.activation])
        width_in = wide
    return nn.Sequential(*layers)


class MLPConnector(nn.Module):
    """Pool, shuffle, (norm,) then linear layers. Source: LLaVA's `multimodal_projector/builder.py`; Idefics3 for the shuffle."""

    def __init__(self, config: VisionLanguageConfig):
        super().__init__()
        connector = config.connector_config
        self.grid, self.pool, self.shuffle = config.vision_grid, connector.pool, connector.shuffle
        width = config.vision_width * connector.shuffle**2
        self.norm = nn.LayerNorm(width) if connector.norm else nn.Identity()
        self.layers = linear_layers(connector, width, config.text_config.hidden_size)

    def forward(self, features_IND: torch.Tensor) -> torch.Tensor:
        """(I, N, D_vision) -> (I, N / (pool * shuffle)^2, D_text)."""
        if self.pool > 1:
            features_IND = self._regroup(features_IND, self.grid, self.pool).mean(dim=2)
        if self.shuffle > 1:
            features_IND = self._regroup(features_IND, self.grid // self.pool, self.shuffle).flatten(2)
        return self.layers(self.norm(features_IND))

    @staticmethod
    def _regroup(features_IND: torch.Tensor, grid: int, side: int) -> torch.Tensor:
        """(I, grid*grid, D) -> (I, cells, side*side, D): each cell holds its square of neighbours, row by row."""
        images, _, width = features_IND.shape
        cells = grid // side
        blocks = features_IND.view(images, cells, side, cells, side, width).permute(0, 1, 3, 2, 4, 5)
        return blocks.reshape(images, cells * cells, side * side, width)
