"""Folders of MoE-LLaVA checkpoints to model folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from salticid.checkpoints.load import load_config, load_processor
from salticid.checkpoints.moe_llava import convert_moe_llava, invert_moe_llava
from salticid.checkpoints.moe_llava_config import backbone_of, invert_moe_llava_config
from salticid.checkpoints.save import new_folder
from salticid.checkpoints.tiktoken_vocabulary import find_tiktoken, read_tiktoken
from salticid.checkpoints.weights import WEIGHT_FILES, read_file, read_weights, write_weights
from salticid.data.templates import get_template
from salticid.errors import CheckpointError, ConfigurationError
from salticid.models import SalticidImageProcessor, VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor
from salticid.models.processing import IMAGE_MARK


def read_upstream(source: Path, language: Path | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`config.json` and tensors of an upstream folder, with those of its language model for a stage-1 checkpoint.

    Raises:
        CheckpointError: something is missing or damaged.
    """
    values = _read_json(Path(source) / "config.json")
    backbone_of(values)
    projector = Path(source) / "mm_projector.bin"
    if projector.is_file() and not any(Path(source).glob("pytorch_model*")) and not any(Path(source).glob("model*")):
        if language is None:
            raise CheckpointError(
                f"{source} is a stage-1 checkpoint, a projector alone; give the folder of its language model with --language"
            )
        return values, read_weights(Path(language)) | read_file(projector)
    return values, read_weights(Path(source))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no {path.name} in {path.parent}; give the folder of a MoE-LLaVA checkpoint")
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; download it again") from error


def convert_moe_llava_folder(
    source: Path,
    out: Path,
    *,
    vision: Path | None = None,
    language: Path | None = None,
    tokenizer: Path | None = None,
    routing: str = "deepspeed",
) -> VisionLanguageConfig:
    """Make a model folder of an upstream folder; it appears whole or not at all.

    Args:
        source: `config.json` and weights of stage 1, 2 or 3.
        out: the new folder.
        vision: folder of the vision tower; its weights, where it has any, replace those of the checkpoint.
        language: folder of the language model, for a stage-1 checkpoint.
        tokenizer: folder of the tokenizer, where the checkpoint holds none.
        routing: see `convert_moe_llava`.

    Raises:
        CheckpointError: see `convert_moe_llava`. InputError: `out` exists.
    """
    values, upstream = read_upstream(source, language)
    words = read_tokenizer(Path(tokenizer or source))
    tower = None if vision is None else _read_json(Path(vision) / "config.json")
    tower_weights = None if vision is None else _tower_weights(Path(vision), upstream)
    image_token_id = words.get_vocab()[IMAGE_MARK]
    with new_folder(out) as folder:
        try:
            conversion = convert_moe_llava(values, upstream, image_token_id, tower=tower, tower_weights=tower_weights, routing=routing)
        except ConfigurationError as error:
            raise CheckpointError(f"{source} describes a model that cannot be: {error}") from error
        config = conversion.config
        config.architectures, config.dtype = [VisionLanguageModel.__name__], next(iter(upstream.values())).dtype
        config.save_pretrained(folder)
        write_weights(folder, conversion.shapes, conversion.tensors())
        processor(values, config, words).save_pretrained(folder)
        stop = words.get_vocab().get(get_template(config.template).answer_end, words.eos_token_id)
        GenerationConfig(eos_token_id=stop, pad_token_id=words.pad_token_id).save_pretrained(folder)
    return config


def export_moe_llava_folder(source: Path, out: Path) -> None:
    """The way back: a converted model folder to a folder in upstream's form, with `config.json` and `pytorch_model.bin`.

    Raises:
        CheckpointError: the folder holds another model, or parts that upstream cannot hold.
    """
    config = load_config(Path(source))
    upstream = invert_moe_llava_config(config)
    tensors = invert_moe_llava(backbone_of(upstream), read_weights(Path(source)), linear=upstream["image_projector_type"] == "linear")
    with new_folder(out) as folder:
        (folder / "config.json").write_text(json.dumps(upstream, indent=2))
        torch.save({name: tensor.clone() for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
        load_processor(Path(source)).tokenizer.save_pretrained(folder)


def _tower_weights(vision: Path, upstream: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    only_described = not any((vision / name).is_file() for name in WEIGHT_FILES) and any(".image_tower." in key for key in upstream)
    return None if only_described else read_weights(vision)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with the placeholder added."""
    tiktoken = find_tiktoken(folder)
    try:
        tokenizer = read_tiktoken(tiktoken) if tiktoken else AutoTokenizer.from_pretrained(folder)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise CheckpointError(f"no tokenizer in {folder} that can be read; give the folder of one with --tokenizer") from error
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_MARK]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # as upstream; padding is masked, so any token will do
    return tokenizer


def processor(values: Mapping[str, Any], config: VisionLanguageConfig, tokenizer: PreTrainedTokenizerBase) -> VisionLanguageProcessor:
    """Upstream's image processing: CLIP's or SigLIP's, after padding to a square where `image_aspect_ratio` says so."""
    size = config.vision_config.image_size
    preset = "siglip" if config.vision_config.model_type == "siglip_vision_model" else "clip"
    image = SalticidImageProcessor.from_preset(preset, size=size)
    if values.get("image_aspect_ratio") == "pad":
        image = SalticidImageProcessor.from_preset(preset, size=size, mode="pad", background="mean")
    return VisionLanguageProcessor(image, tokenizer, image_tokens=config.image_tokens)
