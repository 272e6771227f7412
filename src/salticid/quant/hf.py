"""Quantised folders for transformers: its `from_pretrained` and `save_pretrained` call what stands here.

The file is made to be mapped into memory and used in place. Vision towers are stored in bfloat16; everything else that is not int8
keeps the dtype it has.
"""

from __future__ import annotations

import json
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.quant.int8 import WEIGHT_ALIGNMENT, Int8Linear, is_aligned
from salticid.quant.plan import DEFAULT_GROUP, Precision
from salticid.quant.swap import SMALL_LAYERS, swap_to_float, swap_to_small

QUANT_METHOD = "salticid"
METHODS = ("rtn", "awq", "gptq")
# In the order in which a safetensors file keeps them.
STORED_DTYPES = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
TOWER = "vision_tower."
# Of the options, what a folder does not say because it says nothing else.
UNSAID: dict[str, Any] = {"group": None, "words": 8, "tower": 16, "method": "rtn"}


@register_quantization_config(QUANT_METHOD)
class SalticidQuantizationConfig(QuantizationConfigMixin):
    """`quantization_config` of a quantised model's `config.json`; see `salticid.quant.plan.Precision`.

    Args:
        bits: of each weight of the decoder layers: 8 (int8, symmetric, one scale per output channel) or 4 (with zero points).
        group: inputs that share a scale; for 4 bits alone.
        words: bits of embeddings and output head.
        tower: bits of the vision tower's linear layers; 16 where they are not quantised.
        method: how weights were rounded: "rtn" (to the nearest), "awq", whose layers have input scales, or "gptq".

    Raises:
        ConfigurationError: another number of bits, or an unknown option.
    """

    def __init__(
        self,
        bits: int = 8,
        group: int | None = None,
        words: int = 8,
        tower: int = 16,
        method: str = "rtn",
        quant_method: str = QUANT_METHOD,
        **unknown: Any,
    ):
        if unknown:
            known = ", ".join(["bits", *UNSAID, "quant_method"])
            raise ConfigurationError(f"quantization_config has no option {', '.join(map(repr, unknown))}; known: {known}")
        if method not in METHODS:
            raise ConfigurationError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
        self.quant_method = quant_method  # type: ignore[assignment]
        self.bits, self.group, self.words, self.tower, self.method = bits, group, words, tower, method
        self.precision  # noqa: B018 (checks them)

    @classmethod
    def of(cls, precision: Precision, method: str = "rtn") -> SalticidQuantizationConfig:
        """What a folder says of a model that was quantised so."""
        has_groups = 4 in (precision.bits, precision.words, precision.tower)
        return cls(precision.bits, precision.group if has_groups else None, precision.words, precision.tower, method)

    @property
    def precision(self) -> Precision:
        return Precision(self.bits, DEFAULT_GROUP if self.group is None else self.group, self.words, self.tower, self.method == "awq")

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name not in UNSAID or value != UNSAID[name]}


@register_quantizer(QUANT_METHOD)
class SalticidQuantizer(HfQuantizer):
    """Makes the places for small tensors before a checkpoint is read, and the file when a model is saved."""

    requires_calibration = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ConfigurationError(
                "from_pretrained does not quantise; load the model without quantization_config, then call quantize_model"
            )

    def _process_model_before_weight_loading(self, model: VisionLanguageModel, **kwargs: Any) -> VisionLanguageModel:
        swap_to_small(model, cast(SalticidQuantizationConfig, self.quantization_config).precision)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for module in model.modules():
            if isinstance(module, SMALL_LAYERS):
                module.requires_grad_(False)
            if isinstance(module, Int8Linear) and not module.weight.is_meta and not is_aligned(module.weight, WEIGHT_ALIGNMENT):
                # A file that another program wrote may put weights where the packed kernel cannot read them.
                module.weight.data = module.weight.data.clone()
        return model

    def _dequantize(self, model: VisionLanguageModel, dtype: torch.dtype | None = None) -> VisionLanguageModel:
        dtype = dtype or model.dtype
        swap_to_float(model, dtype)
        return model.to(dtype)  # type: ignore[arg-type]

    def get_state_dict_and_metadata(self, model: VisionLanguageModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
        state = {name: tensor.bfloat16() if is_stored_in_bfloat16(name, tensor) else tensor for name, tensor in state.items()}
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
    for name, parameter in model.vision_tower.named_parameters():
        if _is_matrix(parameter) and not name.endswith("scale_zero"):
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)


def attach(model: VisionLanguageModel, quantizer: SalticidQuantizer) -> None:
    """Mark a model that was quantised in memory as `from_pretrained` marks one that it loaded."""
    model.is_quantized = True  # type: ignore[assignment]
    model.quantization_method = QUANT_METHOD  # type: ignore[assignment]
    model.hf_quantizer = quantizer  # type: ignore[assignment]
    quantizer.postprocess_model(model)


def is_stored_in_bfloat16(name: str, tensor: Tensor) -> bool:
    """The vision tower's convolutions and matrices, rounded so, and grids of four bits, whose numbers bfloat16 holds."""
    return name.endswith("scale_zero") or (name.startswith(TOWER) and _is_matrix(tensor))


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1


def _aligning_metadata(state: dict[str, Tensor]) -> dict[str, str]:
    """Metadata as long as it must be for the int8 weights of a safetensors file to stand where the packed kernel can read them.

    A safetensors file is eight bytes, a header in JSON padded with spaces to a multiple of eight, and the tensors, wide dtypes first,
    then by name. Where that changes, or no length fits, weights are copied when the file is loaded, instead of used in place.
    """
    if any(tensor.dtype not in STORED_DTYPES for tensor in state.values()):
        return {}
    entries: dict[str, Any] = {}
    end, wide = 0, 0
    order = list(STORED_DTYPES)
    for name, tensor in sorted(state.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": STORED_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        wide = wide if tensor.element_size() == 1 else end
    # Without padding first: two metadata keys stand in the header in an order that differs from one save to the next.
    for metadata in ({}, {"padding": ""}, {"padding": " " * 8}):
        header = {"__metadata__": metadata | {"format": "pt"}} | entries
        size = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
        if (8 + size + -size % 8 + wide) % WEIGHT_ALIGNMENT == 0:
            return metadata
    return {}
