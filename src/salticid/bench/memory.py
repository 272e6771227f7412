"""What a model will take to run, from its configuration alone: weights are counted on shapes without numbers, the rest is arithmetic.

`salticid.bench.child` measures the same in a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salticid.bench.subject import PRECISIONS, check_precision, compute_dtype, quantized
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.models.moe.layer import ExpertsLayer

PARTS = ("vision tower", "connector", "experts", "language model")


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes while it answers one question.

    weights: by part, see `PARTS`. cache: keys and values of all tokens. activations: the largest working set of one layer, a weight
    matrix that is unpacked for a product included. libraries: the interpreter and what it imports, as this process has it now.
    """

    precision: str
    weights: dict[str, int]
    cache: int
    activations: int
    libraries: int

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.cache + self.activations + self.libraries


def footprint(config: VisionLanguageConfig, precision: str, tokens: int) -> Footprint:
    """What `tokens` of prompt and answer take at that precision.

    Raises:
        InputError: an unknown precision. ConfigurationError: these weights have no such precision.
    """
    check_precision(precision)
    dtype = compute_dtype(precision)
    model = quantized(meta_model(config, dtype), precision)
    return Footprint(precision, _weights(model), _cache(config, dtype, tokens), _activations(model, dtype, tokens), resident())


def footprints(config: VisionLanguageConfig, tokens: int) -> tuple[list[Footprint], dict[str, str]]:
    """At every precision, and why some are not to be had."""
    found, refused = [], {}
    for precision in PRECISIONS:
        try:
            found.append(footprint(config, precision, tokens))
        except ConfigurationError as error:
            refused[precision] = str(error)
    return found, refused


def meta_model(config: VisionLanguageConfig, dtype: torch.dtype) -> VisionLanguageModel:
    """A model of shapes alone: it takes no memory, and cannot answer."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return VisionLanguageModel(config).eval()
    finally:
        torch.set_default_dtype(before)


def peak() -> int:
    """The most that this process has held so far, in bytes: VmHWM where there is /proc, else what `getrusage` says."""
    if (lines := _status()) is not None:
        return lines["VmHWM"]
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int:
    """What this process holds now, in bytes; its peak where there is no /proc."""
    lines = _status()
    return peak() if lines is None else lines["VmRSS"]


def forget_peak() -> bool:
    """Let `peak` count from now on; false where the system cannot (only Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status() -> dict[str, int] | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _weights(model: VisionLanguageModel) -> dict[str, int]:
    experts = [layer for layer in model.modules() if isinstance(layer, ExpertsLayer)]
    in_experts = sum(_bytes(layer) for layer in experts)
    whole = (_bytes(model.vision_tower), _bytes(model.connector), in_experts, _bytes(model.language_model) - in_experts)
    return dict(zip(PARTS, whole, strict=True))


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _cache(config: VisionLanguageConfig, dtype: torch.dtype, tokens: int) -> int:
    text = config.text_config
    return 2 * text.num_hidden_layers * text.num_key_value_heads * head_channels(text) * tokens * dtype.itemsize


def _activations(model: VisionLanguageModel, dtype: torch.dtype, tokens: int) -> int:
    """The larger of what the decoder and the tower hold at once; attention is fused, so nothing grows with the square of tokens."""
    text, vision = model.config.text_config, model.config.vision_config
    heads = text.num_attention_heads + 2 * text.num_key_value_heads
    per_token = 3 * text.hidden_size + max(2 * heads * head_channels(text), 3 * text.intermediate_size)
    decoder = tokens * per_token * dtype.itemsize + 4 * text.vocab_size
    if vision.model_type == "efficientnet_lite":
        pixels = (vision.image_size // 2) ** 2  # its first block that widens six times, before and after activation
        tower = 2 * 6 * vision.stage_channels[0] * pixels * dtype.itemsize
    else:
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        tower = patches * (4 * vision.hidden_size + 2 * vision.intermediate_size) * dtype.itemsize
    return max(decoder + _unpacked(model, dtype), tower)


def _unpacked(model: VisionLanguageModel, dtype: torch.dtype) -> int:
    """The largest matrix of whole numbers, which a long prompt multiplies by unpacking it."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "in_features") and hasattr(module, "out_features")]
    sizes = [layer.in_features * layer.out_features for layer in layers if not layer.weight.is_floating_point()]
    return max(sizes, default=0) * dtype.itemsize


def head_channels(text: Any) -> int:
    """Channels of one attention head."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
