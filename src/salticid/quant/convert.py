"""A model in full precision becomes one with small weights, in memory."""

from __future__ import annotations

from salticid.checkpoints.lora import merge_attached_lora
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.quant.hf import SalticidQuantizationConfig, SalticidQuantizer, attach, round_vision_tower
from salticid.quant.plan import DEFAULT_GROUP, Precision
from salticid.quant.swap import swap_to_small


def quantize_model(
    model: VisionLanguageModel, bits: int = 8, group: int = DEFAULT_GROUP, words: int | None = None, tower: int | None = None
) -> VisionLanguageModel:
    """Quantise a model in place, layer by layer, and return it; `save_pretrained` then writes the small weights.

    What becomes what is said in `salticid.quant.plan`. Attached LoRA is merged first. The model keeps its dtype, and
    `model.dequantize()` turns it back into plain layers with the rounded weights. A folder that does not fit into memory is quantised
    by `quantize_folder`, which can also calibrate.

    Args:
        bits: 8 (one scale per output channel), or 4 (a scale and a zero point per `group` inputs) for the decoder layers.
        group: 32, 64 or 128.
        words: bits of embeddings and output head, 8 or 4; None for the rule.
        tower: bits of the vision tower's linear layers, 16 (as they are), 8 or 4; None for the rule.

    Raises:
        ConfigurationError: an option that is not known, a model that is quantised already, or one with unusual embeddings.
    """
    precision = Precision.for_model(bits, model.config.vision_config.model_type, group, words, tower)
    quantizer = SalticidQuantizer(SalticidQuantizationConfig.of(precision))
    if getattr(model, "hf_quantizer", None) is not None:
        raise ConfigurationError("the model is quantised already; quantise its original weights, or call model.dequantize() first")
    merge_attached_lora(model)
    swap_to_small(model, precision)
    round_vision_tower(model)
    attach(model, quantizer)
    return model
