"""A model in full precision becomes one with small weights."""

from __future__ import annotations

from salticid.checkpoints.lora import merge_attached_lora
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.quant.hf import SalticidQuantizationConfig, SalticidQuantizer, attach, round_vision_tower
from salticid.quant.swap import swap_to_int8


def quantize_model(model: VisionLanguageModel, bits: int = 8) -> VisionLanguageModel:
    """Quantise a model in place, layer by layer, and return it; `save_pretrained` then writes the small weights.

    Linear layers of the connector and the language model, embeddings and output head become int8 with one scale per output channel;
    the vision tower's convolutions and matrices are rounded to bfloat16; small vectors stay. Attached LoRA is merged first. The
    model keeps its dtype, and `model.dequantize()` turns it back into plain layers with the rounded weights.

    Raises:
        ConfigurationError: unknown `bits`, a model that is quantised already, or one with experts.
    """
    quantizer = SalticidQuantizer(SalticidQuantizationConfig(bits=bits))
    if getattr(model, "hf_quantizer", None) is not None:
        raise ConfigurationError("the model is quantised already; quantise its original weights, or call model.dequantize() first")
    merge_attached_lora(model)
    swap_to_int8(model)
    round_vision_tower(model)
    attach(model, quantizer)
    return model
