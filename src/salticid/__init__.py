"""Salticid: small vision-language models on hardware that you own.

    import salticid

    vlm = salticid.load()
    vlm.ask("photo.jpg", "How many dogs are there?")

Names are imported when they are first used, so `import salticid` alone loads no torch. `import salticid.models` registers the model
class with transformers' Auto classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from salticid.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    ImageError,
    InputError,
    MissingExtraError,
    ModelNotFoundError,
    SalticidError,
)

if TYPE_CHECKING:
    from salticid.engine.load import load
    from salticid.engine.vision_language import VisionLanguage
    from salticid.models import VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor
    from salticid.quant import quantize_model

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "ImageError",
    "InputError",
    "MissingExtraError",
    "ModelNotFoundError",
    "SalticidError",
    "VisionLanguage",
    "VisionLanguageConfig",
    "VisionLanguageModel",
    "VisionLanguageProcessor",
    "__version__",
    "load",
    "quantize_model",
]

_HOMES = {
    "VisionLanguage": "salticid.engine.vision_language",
    "VisionLanguageConfig": "salticid.models",
    "VisionLanguageModel": "salticid.models",
    "VisionLanguageProcessor": "salticid.models",
    "load": "salticid.engine.load",
    "quantize_model": "salticid.quant",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'salticid' has no attribute {name!r}; public names: {', '.join(__all__)}")
    from salticid.engine.threads import spin_briefly

    spin_briefly()  # heard only before torch is imported, which the next line may do
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
