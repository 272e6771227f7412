"""Small weights. Importing this package is what lets transformers load a quantised model folder."""

from __future__ import annotations

from salticid.quant.convert import quantize_model
from salticid.quant.hf import SalticidQuantizationConfig, SalticidQuantizer
from salticid.quant.int8 import Int8Embedding, Int8Linear

__all__ = ["Int8Embedding", "Int8Linear", "SalticidQuantizationConfig", "SalticidQuantizer", "quantize_model"]
