"""The one door: a name, a folder or a Hub id in, a `VisionLanguage` out."""

from __future__ import annotations

import os

import torch

import salticid.quant  # noqa: F401  lets transformers read folders with small weights
from salticid.checkpoints.load import load_config, load_model, load_processor
from salticid.checkpoints.lora import merge_attached_lora
from salticid.engine.catalog import find_model
from salticid.engine.vision_language import VisionLanguage
from salticid.errors import InputError
from salticid.quant import quantize_model

PRECISIONS = ("auto", "fp32", "bf16", "int8", "int4")
SMALL_BITS = {"int8": 8, "int4": 4}
DEVICES = ("auto", "cpu", "cuda", "mps")

# What a model in full precision computes in when nobody says so. On processors float32: few of them multiply bfloat16 faster, and
# the words come out the same on all.
AUTO_DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16, "mps": torch.bfloat16}

# The packed kernels have vector code for bfloat16 alone; without AVX-512, what is left to plain bfloat16 products is too slow. There
# models compute in float32, and with AVX2 only what goes into a packed kernel is rounded (`quant.processor.ROUNDS_FLOAT32`).
BFLOAT16_PROCESSORS = ("AVX512",)


def load(model: str | os.PathLike[str] = "nano", precision: str = "auto", device: str = "auto") -> VisionLanguage:
    """Load a model for asking.

    Args:
        model: the embedded model's name, a folder, or a Hub id `owner/name`.
        precision: "fp32" and "bf16" hold and compute so, also from a folder with small weights; "int8" and "int4" hold weights in so
            many bits, made from full ones where needed; "auto" takes the weights as they are stored, see `AUTO_DTYPES`.
        device: "auto" (CUDA, then Apple's GPU, then the processor), "cpu", "mps", "cuda" or "cuda:1".

    Raises:
        ModelNotFoundError: there is no such model at hand.
        CheckpointError: its files are missing, damaged or of another kind.
        InputError: an unknown precision, or a device that this machine lacks.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    place = choose_device(device)
    folder = find_model(model)
    stored = getattr(load_config(folder), "quantization_config", None)
    small = stored is not None
    if stored is not None and SMALL_BITS.get(precision, stored["bits"]) != stored["bits"]:
        raise InputError(f"the weights in {folder} have {stored['bits']} bits; for {precision} give a folder with the original weights")
    dtype = choose_dtype(precision, place, small)
    network = load_model(folder, dtype)
    merge_attached_lora(network)  # one product less for each, and the words are the same
    if small and precision in ("fp32", "bf16"):
        network.dequantize(dtype)
    elif not small and precision in SMALL_BITS:
        quantize_model(network, SMALL_BITS[precision])
    network.to(place)  # type: ignore[arg-type]
    return VisionLanguage(network, load_processor(folder))


def choose_dtype(precision: str, device: torch.device, small: bool) -> torch.dtype:
    """The dtype that a model computes in; `small`: its folder holds small weights."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if (small or precision in SMALL_BITS) and device.type == "cpu":
        return torch.bfloat16 if torch.backends.cpu.get_cpu_capability() in BFLOAT16_PROCESSORS else torch.float32
    return AUTO_DTYPES[device.type]


def choose_device(device: str) -> torch.device:
    """The device of that name; raises `InputError` where this machine has none."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, here in present.items() if here))
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in present:
        raise InputError(f"unknown device {device!r}; known: {', '.join(DEVICES)}")
    if not present[place.type] or (place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"this machine has no device {device!r}; use --device auto or cpu")
    return place
