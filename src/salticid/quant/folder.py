"""A model folder becomes one with small weights, without the model ever being whole in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from salticid.checkpoints.load import load_config, load_processor
from salticid.checkpoints.lora import LORA_FOLDER
from salticid.checkpoints.save import new_folder
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.quant.calibrate import Calibration, Gain, calibrate
from salticid.quant.files import TensorFile, TensorSource
from salticid.quant.hf import METHODS, SalticidQuantizationConfig
from salticid.quant.int8 import LEVELS
from salticid.quant.plan import DEFAULT_GROUP, Precision
from salticid.quant.stream import check_source, draw_up, stored_likes, write_small

WEIGHTS = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True)
class Report:
    """What `quantize_folder` did. `gains`: one per calibrated matrix; empty where weights were rounded to the nearest."""

    folder: Path
    bits: int
    method: str
    gains: tuple[Gain, ...] = ()


def quantize_folder(
    source: Path,
    out: Path,
    bits: int = 8,
    group: int = DEFAULT_GROUP,
    *,
    words: int | None = None,
    tower: int | None = None,
    method: str = "rtn",
    calibration: Calibration | None = None,
    levels: int = LEVELS,
    progress: Callable[[str], None] = lambda name: None,
) -> Report:
    """Write a quantised copy of a model folder; it appears whole, by one rename, or not at all.

    Peak memory is a few million weights, whatever the model's size; with a calibration, one decoder layer in float32 and what the
    samples are before it.

    Args:
        source: a folder in float32, bfloat16 or float16, in one file or in shards.
        bits, group, words, tower: see `quantize_model`.
        method: "rtn" rounds to the nearest; "awq" scales inputs first; "gptq" corrects for each rounding error in what is left to round.
        calibration: photos and words for "awq" and "gptq".
        levels: steps of 8 bits from zero to the largest weight of a row, 64 to 127; see `int8.quantize_rows`.

    Raises:
        ConfigurationError: an unknown option; weights that are quantised already; adapters beside the weights; a method without
            calibration, or the other way round, or with 8 bits.
        ModelNotFoundError, CheckpointError: there is no such model, its files are damaged, or `out` exists.
    """
    source, out = Path(source), Path(out)
    if not LEVELS // 2 < levels <= LEVELS:
        raise ConfigurationError(f"levels is {levels}; 8 bits have room for 64 to {LEVELS}")
    config = load_config(source)
    _check(source, config, bits, method, calibration)
    precision = Precision.for_model(bits, config.vision_config.model_type, group, words, tower, scaled=method == "awq")
    blueprint, tensors = draw_up(config, precision), TensorSource(source)
    check_source(blueprint, tensors)
    gains: list[Gain] = []
    calibrated = () if calibration is None else calibrate(config, tensors, load_processor(source), blueprint, method, calibration, gains)
    with new_folder(out) as folder:
        for file in source.iterdir():  # tokenizer, image processing, generation options
            if file.is_file() and not file.name.endswith(WEIGHTS):
                shutil.copy(file, folder)
        with TensorFile(folder / "model.safetensors", stored_likes(blueprint, tensors)) as weights:
            write_small(weights, blueprint, tensors, calibrated, progress, levels)
        write_config(folder, config, precision, method)
    return Report(out, bits, method, tuple(gains))


def write_config(folder: Path, config: VisionLanguageConfig, precision: Precision, method: str = "rtn") -> None:
    """`config.json` of a quantised model."""
    config.quantization_config = SalticidQuantizationConfig.of(precision, method).to_dict()
    config.architectures = [VisionLanguageModel.__name__]
    config.dtype = config.dtype or torch.float32
    config.save_pretrained(folder)


def _check(source: Path, config: VisionLanguageConfig, bits: int, method: str, calibration: Calibration | None) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigurationError(f"the model in {source} is quantised already; quantise the folder with its original weights")
    if (source / LORA_FOLDER).is_dir():
        raise ConfigurationError(f"{source} keeps LoRA beside its weights; merge it first (salticid convert ... --merge-lora)")
    if method not in METHODS:
        raise ConfigurationError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if (method == "rtn") != (calibration is None):
        need = "looks at no samples; leave --calibrate out" if method == "rtn" else "needs samples; give --calibrate DATA"
        raise ConfigurationError(f"the method {method!r} {need}, or choose another --method ({', '.join(METHODS)})")
    if method != "rtn" and bits != 4:
        raise ConfigurationError(f"the method {method!r} is for 4 bits; {bits} bits lose next to nothing without it")
