"""Quantised folders for transformers: its `from_pretrained` and `save_pretrained` call what stands here.

The file is made to be mapped into memory and used in place. Vision towers are stored in bfloat16; everything else that is not int8
keeps the dtype it has.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.quant.int8 import WEIGHT_ALIGNMENT, is_aligned
from salticid.quant.swap import INT8_LAYERS, swap_to_float, swap_to_int8

QUANT_METHOD = "salticid"
SUPPORTED_BITS = (8,)
STORED_DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8"}
TOWER = "vision_tower."


@register_quantization_config(QUANT_METHOD)
class SalticidQuantizationConfig(QuantizationConfigMixin):
    """`quantization_config` of a quantised model's `config.json`.

    Args:
        bits: of each weight; 8 (int8, symmetric, one scale per output channel).

    Raises:
        ConfigurationError: another number of bits, or an unknown option.
    """

    def __init__(self, bits: int = 8, quant_method: str = QUANT_METHOD, **unknown: Any):
        if bits not in SUPPORTED_BITS:
            raise ConfigurationError(f"weights in {bits} bits are not supported; use bits={SUPPORTED_BITS[0]}")
        if unknown:
            raise ConfigurationError(f"quantization_config has no option {', '.join(map(repr, unknown))}; known: bits, quant_method")
        self.quant_method = quant_method  # type: ignore[assignment]
        self.bits = bits


@register_quantizer(QUANT_METHOD)
class SalticidQuantizer(HfQuantizer):
    """Makes the places for int8 tensors before a checkpoint is read, and the file when a model is saved."""

    requires_calibration = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ConfigurationError(
                "from_pretrained does not quantise; load the model without quantization_config, then call quantize_model"
            )

    def _process_model_before_weight_loading(self, model: VisionLanguageModel, **kwargs: Any) -> VisionLanguageModel:
        swap_to_int8(model)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for module in model.modules():
            if isinstance(module, INT8_LAYERS):
                module.requires_grad_(False)
                if not module.weight.is_meta and not is_aligned(module.weight, WEIGHT_ALIGNMENT):
                    # A file that another program wrote may put weights where the packed kernel cannot read them.
                    module.weight.data = module.weight.data.clone()
        return model

    def _dequantize(self, model: VisionLanguageModel, dtype: torch.dtype | None = None) -> VisionLanguageModel:
        dtype = dtype or model.dtype
        swap_to_float(model, dtype)
        return model.to(dtype)  # type: ignore[arg-type]

    def get_state_dict_and_metadata(self, model: VisionLanguageModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
        state = {name: tensor.bfloat16() if name.startswith(TOWER) and _is_matrix(tensor) else tensor for name, tensor in state.items()}
        return state, _aligning_metadata(state)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def round_vision_tower(model: VisionLanguageModel) -> None:
    """Round the tower's convolutions and matrices to what the file will hold, keeping their dtype."""
    for parameter in model.vision_tower.parameters():
        if _is_matrix(parameter):
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)


def attach(model: VisionLanguageModel, quantizer: SalticidQuantizer) -> None:
    """Mark a model that was quantised in memory as `from_pretrained` marks one that it loaded."""
    model.is_quantized = True  # type: ignore[assignment]
    model.quantization_method = QUANT_METHOD  # type: ignore[assignment]
    model.hf_quantizer = quantizer  # type: ignore[assignment]
    quantizer.postprocess_model(model)


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1


def _aligning_metadata(state: dict[str, Tensor]) -> dict[str, str]:
    """Metadata as long as it must be for the int8 tensors of a safetensors file to stand where the packed kernel can read them.

    A safetensors file is eight bytes, a header in JSON padded with spaces to a multiple of eight, and the tensors, wide dtypes first,
    then by name. Where that changes, or no length fits, weights are copied when the file is loaded, instead of used in place.
    """
    if any(tensor.dtype not in STORED_DTYPES for tensor in state.values()):
        return {}
    entries: dict[str, Any] = {}
    end, wide = 0, 0
    for name, tensor in sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": STORED_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        wide = wide if tensor.dtype == torch.int8 else end
    # Without padding first: two metadata keys stand in the header in an order that differs from one save to the next.
    for metadata in ({}, {"padding": ""}, {"padding": " " * 8}):
        header = {"__metadata__": metadata | {"format": "pt"}} | entries
        size = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
        if (8 + size + -size % 8 + wide) % WEIGHT_ALIGNMENT == 0:
            return metadata
    return {}
