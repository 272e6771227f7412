"""Connectors: image features to language-model tokens."""

from __future__ import annotations

from torch import nn

from salticid.models.configuration import VisionLanguageConfig
from salticid.models.connectors.mlp import MLPConnector
from salticid.models.connectors.qformer import QFormerConnector

CONNECTOR_CLASSES: dict[str, type[nn.Module]] = {"mlp": MLPConnector, "qformer": QFormerConnector}


def build_connector(config: VisionLanguageConfig) -> nn.Module:
    """The connector that `config.connector_config.kind` names: (I, N, D_vision) -> (I, image_tokens, D_text)."""
    return CONNECTOR_CLASSES[config.connector_config.kind](config)
