"""What a Q-Former and its text branch are made of, in front of the tower that they are trained on."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, ClassVar

import transformers
from transformers import AutoConfig, PreTrainedConfig

from salticid.errors import ConfigurationError
from salticid.models.configuration import WRITTEN_BY_TRANSFORMERS, ConnectorConfig, VisionLanguageConfig


class QFormerPretrainingConfig(PreTrainedConfig):
    """Configuration of `QFormerPretrainingModel`.

    Args:
        vision_config, vision_layers, vision_keep_cls, vision_drop_first, vision_positions, vision_standardized, connector_config: as in
            `VisionLanguageConfig`, so that the trained Q-Former fits the model it is meant for. The connector is of the kind "qformer";
            of it, the queries and the `qformer_config` are used here, and its linear layers are not: they belong to one language model.
        vocab_size, pad_token_id, start_token_id: of the text branch's tokenizer; `start_token_id` is [DEC], in place of [CLS] where
            text is generated.
        projection_size: width of the space in which photos and texts are compared.
        local_queries: each query also answers for one cell of the photo, see `locality_loss`; their number must be a square.
        boxed_queries: and for the thing that lies there: where its box is, and what it is called, see `box_loss`.

    Raises:
        ConfigurationError: a part is unknown, or two parts do not fit; the message names both sizes.
    """

    model_type = "salticid_qformer"
    has_no_defaults_at_init = True  # a Q-Former fits one tower
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "connector_config": ConnectorConfig}

    vision_config: Any = None
    connector_config: Any = None
    vision_layers: list[int] | None = None
    vision_keep_cls: bool = False
    vision_drop_first: bool = False
    vision_positions: bool = False
    vision_standardized: bool = False
    vocab_size: int = 30523  # BERT's, and [DEC]
    pad_token_id: int | None = 0
    start_token_id: int = 30522
    projection_size: int = 256
    local_queries: bool = False
    boxed_queries: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        own = [field.name for field in fields(type(self)) if field.name in type(self).__annotations__]
        if unknown := [key for key in kwargs if not (hasattr(PreTrainedConfig, key) or key in WRITTEN_BY_TRANSFORMERS or key[0] == "_")]:
            raise ConfigurationError(f"Q-Former pretraining has no option {', '.join(map(repr, unknown))}; known: {', '.join(own)}")
        tower = self._tower(self.vision_config, self.connector_config or {"kind": "qformer"})
        self.vision_config, self.connector_config = tower.vision_config, tower.connector_config
        super().__post_init__(**kwargs)
        if self.connector_config.kind != "qformer":
            raise ConfigurationError(f"Q-Former pretraining has a connector of kind {self.connector_config.kind!r}; set it to 'qformer'")
        if self.connector_config.boxed_queries:
            raise ConfigurationError(
                "connector.boxed_queries is of a whole model; in pretraining queries learn boxes by model.boxed_queries"
            )
        queries = self.connector_config.queries
        if self.local_queries and math.isqrt(queries) ** 2 != queries:
            raise ConfigurationError(f"{queries} queries are no square of cells; with local_queries give 16, 25, 36, ...")
        if self.boxed_queries and not self.local_queries:
            raise ConfigurationError("boxed_queries is set, but the queries have no cells: set local_queries to true")
        for name in ("start_token_id", "pad_token_id"):
            if (value := getattr(self, name)) is not None and not 0 <= value < self.vocab_size:
                raise ConfigurationError(f"{name} is {value} but the text branch has {self.vocab_size} tokens")
        if self.projection_size < 1:
            raise ConfigurationError(f"projection_size is {self.projection_size}; it must be 1 or more")

    @property
    def tower(self) -> VisionLanguageConfig:
        """The same tower and connector as a whole model has them, in front of any language model."""
        return self._tower(self.vision_config, self.connector_config)

    def _tower(self, vision: Any, connector: Any) -> VisionLanguageConfig:
        return VisionLanguageConfig(
            vision_config=vision,
            connector_config=connector,
            vision_layers=self.vision_layers,
            vision_keep_cls=self.vision_keep_cls,
            vision_drop_first=self.vision_drop_first,
            vision_positions=self.vision_positions,
            vision_standardized=self.vision_standardized,
        )

    @property
    def qformer(self) -> transformers.Blip2QFormerConfig:
        """The connector's Q-Former with a text branch beside its queries."""
        values = self.connector_config.qformer_config.to_dict()
        values.update(use_qformer_text_input=True, vocab_size=self.vocab_size, pad_token_id=self.pad_token_id)
        return transformers.Blip2QFormerConfig(**values)
