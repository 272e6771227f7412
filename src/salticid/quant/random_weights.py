"""Quantised folders of published sizes with weights drawn at random: for measuring memory and speed where the real ones are not at hand.

Tensors are drawn a few rows at a time and rounded at once, so that no model is ever whole in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from salticid.checkpoints.save import new_folder
from salticid.models import SalticidImageProcessor, VisionLanguageConfig, VisionLanguageProcessor
from salticid.models.processing import IMAGE_MARK
from salticid.models.shapes import Shape
from salticid.quant.files import Like, TensorFile
from salticid.quant.folder import write_config
from salticid.quant.plan import DEFAULT_GROUP, Precision
from salticid.quant.stream import Blueprint, draw_up, stored_likes, write_small

DEVIATION = 0.02
FIRST_BYTE = 1000  # id of the tokenizer's first byte, above the special ids of every shape
PRESETS: dict[str, str] = {
    "clip_vision_model": "clip",
    "siglip_vision_model": "siglip",
    "blip_2_vision_model": "blip2",
    "efficientnet_lite": "efficientnet_lite",
}


class RandomSource:
    """Stands for a folder in bfloat16: matrices are normal, norms identities, biases zero. Same name, same values."""

    def __init__(self, blueprint: Blueprint, dtype: torch.dtype = torch.bfloat16):
        likes = blueprint.plain.items()
        self.likes = {name: Like(like.shape, dtype if like.dtype.is_floating_point else like.dtype) for name, like in likes}

    def read(self, name: str) -> Tensor:
        like = self.likes[name]
        if len(like.shape) > 1:
            return _normal(like.shape, name).to(like.dtype)
        ones = name.endswith(("weight", "running_var"))
        return torch.full(like.shape, float(ones), dtype=like.dtype)

    def rows(self, name: str, first: int, last: int, expert: int | None = None) -> Tensor:
        return _normal((last - first, self.likes[name].shape[-1]), f"{name}/{expert}/{first}")


def _normal(shape: tuple[int, ...], name: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * DEVIATION


def write_random_model(
    shape: Shape,
    out: Path,
    bits: int = 8,
    group: int = DEFAULT_GROUP,
    *,
    words: int | None = None,
    tower: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Write a quantised folder of this shape with random weights, and a tokenizer of single bytes; it loads and answers, with noise.

    Raises:
        ConfigurationError: an option that is not known.
        CheckpointError: `out` exists or cannot be written.
    """
    config = shape.config()
    precision = Precision.for_model(bits, config.vision_config.model_type, group, words, tower)
    blueprint = draw_up(config, precision)
    source = RandomSource(blueprint)
    config.dtype = torch.bfloat16
    with new_folder(Path(out)) as folder:
        with TensorFile(folder / "model.safetensors", stored_likes(blueprint, source)) as weights:
            write_small(weights, blueprint, source, progress=progress)
        write_config(folder, config, precision)
        _processor(config).save_pretrained(folder)
        text = config.text_config
        GenerationConfig(eos_token_id=text.eos_token_id, pad_token_id=text.eos_token_id).save_pretrained(folder)


def _processor(config: VisionLanguageConfig) -> VisionLanguageProcessor:
    text: Any = config.text_config
    special = {"<|endoftext|>": text.eos_token_id, IMAGE_MARK: config.image_token_id}
    letters = {letter: FIRST_BYTE + index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters | special, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    end = "<|endoftext|>"
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, pad_token=end)
    vision = config.vision_config
    image = SalticidImageProcessor.from_preset(PRESETS[vision.model_type], size=vision.image_size)
    return VisionLanguageProcessor(image, words, image_tokens=config.image_tokens)
