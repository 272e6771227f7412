"""Configuration, model and processor, registered with transformers' Auto classes."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from salticid.models.configuration import ConnectorConfig, VisionLanguageConfig
from salticid.models.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from salticid.models.image_processing import SalticidImageProcessor
from salticid.models.processing import VisionLanguageProcessor
from salticid.models.vlm import VisionLanguageModel, VisionLanguageOutput

__all__ = [
    "ConnectorConfig",
    "EfficientNetLiteConfig",
    "EfficientNetLiteModel",
    "SalticidImageProcessor",
    "VisionLanguageConfig",
    "VisionLanguageModel",
    "VisionLanguageOutput",
    "VisionLanguageProcessor",
]

AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
AutoConfig.register("salticid", VisionLanguageConfig, exist_ok=True)
AutoModel.register(VisionLanguageConfig, VisionLanguageModel, exist_ok=True)
AutoModelForImageTextToText.register(VisionLanguageConfig, VisionLanguageModel, exist_ok=True)
AutoImageProcessor.register(VisionLanguageConfig, SalticidImageProcessor, exist_ok=True)
AutoProcessor.register(VisionLanguageConfig, VisionLanguageProcessor, exist_ok=True)
