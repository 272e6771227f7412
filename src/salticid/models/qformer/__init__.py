"""Q-Former pretraining: BLIP-2's first stage, for a vision tower that no published Q-Former was trained on."""

from __future__ import annotations

from transformers import AutoConfig

from salticid.models.qformer.configuration import QFormerPretrainingConfig
from salticid.models.qformer.pretraining import QFormerPretrainingModel, QFormerPretrainingOutput

__all__ = ["QFormerPretrainingConfig", "QFormerPretrainingModel", "QFormerPretrainingOutput"]

AutoConfig.register("salticid_qformer", QFormerPretrainingConfig, exist_ok=True)
