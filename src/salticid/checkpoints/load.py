"""Model folders to models: what is missing, truncated or foreign is said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig

from salticid.checkpoints.lora import attach_lora
from salticid.errors import CheckpointError, ModelNotFoundError
from salticid.models import VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor


def model_type(folder: Path) -> str:
    """What kind of model a folder holds, by its `config.json`.

    Raises:
        ModelNotFoundError: there is no such file. CheckpointError: it cannot be read.
    """
    try:
        return str(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["model_type"])
    except OSError as error:
        raise ModelNotFoundError(f"no model in {folder}; a model folder holds config.json and model.safetensors") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {Path(folder) / 'config.json'}; copy the model there again") from error


def holds(folder: Path, kind: str) -> bool:
    """Whether a folder holds a model of this type; one without `config.json` holds none."""
    return (Path(folder) / "config.json").is_file() and model_type(folder) == kind


def load_config(folder: Path) -> VisionLanguageConfig:
    """Read `config.json` of a model folder.

    Raises:
        ModelNotFoundError: there is no such folder or no configuration in it.
        CheckpointError: the configuration belongs to another kind of model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"no model in {folder}; a model folder holds config.json and model.safetensors")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise CheckpointError(f"cannot read {folder / 'config.json'}: {str(error).splitlines()[0]}") from error
    if not isinstance(config, VisionLanguageConfig):
        foreign = f"{folder} holds a {config.model_type!r} model, not a Salticid one"
        raise CheckpointError(f"{foreign}; convert it first (salticid convert --help)")
    return config


def load_model(folder: Path, dtype: str | torch.dtype = torch.float32, **options: Any) -> VisionLanguageModel:
    """Load a model folder in `dtype`, strictly: every weight is found and used. Adapters in `folder/lora` are attached.

    Raises:
        ModelNotFoundError, CheckpointError: see `load_config`; also for weights that are missing, unexpected or truncated.
    """
    folder = Path(folder)
    config = load_config(folder)
    if not any(folder.glob("model*.safetensors")):
        raise CheckpointError(f"{folder} has config.json but no model.safetensors; copy the weights there")
    try:
        with _QuickToShape():
            loaded: Any = VisionLanguageModel.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True, **options)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"the weights in {folder} are damaged or do not fit: {str(error).splitlines()[0]}") from error
    model, report = loaded
    problems = [_listed(name, report[f"{name}_keys"]) for name in ("missing", "unexpected", "mismatched") if report[f"{name}_keys"]]
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {'; '.join(problems)}")
    attach_lora(model, folder)
    return model


def load_unpacked(folder: Path, dtype: str | torch.dtype = torch.float32) -> VisionLanguageModel:
    """`load_model`, with small weights turned back into `dtype`, where `salticid.quant` was imported: integers cannot learn."""
    model: Any = load_model(folder, dtype)
    if getattr(model, "is_quantized", False):
        model.dequantize(dtype)
    return model


def load_processor(folder: Path) -> VisionLanguageProcessor:
    """Load the processor of a model folder; raises `CheckpointError` when its files are missing."""
    try:
        return VisionLanguageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        files = "tokenizer.json, processor_config.json"
        raise CheckpointError(f"{folder} lacks its processor files ({files}): {str(error).splitlines()[0]}") from error


class _QuickToShape(TorchFunctionMode):
    """Makes tensors without memory quickly: what torch has Python code alone for, and would load its compiler for, is left out.

    Random weights are not drawn, and ranges, from which frequencies of positions are made, lie in the processor's memory from the start.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        if function is torch.arange and torch.device(kwargs.get("device") or "cpu").type == "meta":
            kwargs = {**kwargs, "device": "cpu"}
        return function(*args, **kwargs)


def _listed(name: str, keys: Iterable[Any]) -> str:
    first, *rest = sorted(map(str, keys))
    return f"{1 + len(rest)} {name} ({', '.join([first, *rest[:2]])}{', ...' if len(rest) > 2 else ''})"
