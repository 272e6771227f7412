"""Small weights. Importing this package is what lets transformers load a quantised model folder."""

from __future__ import annotations

from salticid.quant.convert import quantize_model
from salticid.quant.experts import Int4Experts, Int8Experts
from salticid.quant.folder import quantize_folder
from salticid.quant.hf import SalticidQuantizationConfig, SalticidQuantizer
from salticid.quant.int4 import Int4Embedding, Int4Linear
from salticid.quant.int8 import Int8Embedding, Int8Linear

__all__ = [
    "Int4Embedding",
    "Int4Experts",
    "Int4Linear",
    "Int8Embedding",
    "Int8Experts",
    "Int8Linear",
    "SalticidQuantizationConfig",
    "SalticidQuantizer",
    "quantize_folder",
    "quantize_model",
]
