"""Reading TinyGPT-V's four files: names made whole, heads and biases brought into the order of the key tables."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from salticid.checkpoints.key_table import KeyTable, listed
from salticid.checkpoints.tinygpt_v_keys import PEFT_STYLES, PREFIXES
from salticid.checkpoints.weights import read_file, read_weights
from salticid.errors import CheckpointError

FUSED = re.compile(r"llama_model\..+\.query_key_value\.(weight|bias|lora_B\.weight)")
# One tensor of each file that no other file has, to tell a wrong file from a damaged one.
MARKS = {
    "vision": "visual_encoder.patch_embed.proj.weight",
    "qformer": "Qformer.bert.embeddings.LayerNorm.weight",
    "language": "llama_model.model.embed_tokens.weight",
    "checkpoint": "llama_proj.weight",
}
NAMES = {
    "vision": "EVA ViT-g file",
    "qformer": "BLIP-2 Q-Former file",
    "language": "Phi-2 folder",
    "checkpoint": "checkpoint of a TinyGPT-V stage",
}


class UpstreamTensors(Mapping[str, Tensor]):
    """All tensors under upstream's full names, the checkpoint's in place of the others'; fused heads are put apart when read.

    slots: for each file, the names it holds.
    """

    def __init__(self, slots: Mapping[str, Mapping[str, Tensor]], heads: int):
        self.slots = {slot: list(tensors) for slot, tensors in slots.items()}
        self._heads = heads
        self._tensors = {name: tensor for tensors in slots.values() for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return regroup_heads(tensor, self._heads) if FUSED.fullmatch(name) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_sources(paths: Mapping[str, Path], tables: Mapping[str, KeyTable], text_config: PreTrainedConfig) -> UpstreamTensors:
    """Read the files of `paths`, keyed as `PREFIXES`, and check each against its table.

    Raises:
        CheckpointError: see `convert_tinygpt_v`.
    """
    slots: dict[str, dict[str, Tensor]] = {}
    for slot, path in paths.items():
        raw = read_weights(path) if slot == "language" else read_checkpoint(path)
        tensors = {whole_name(PREFIXES[slot] + key): tensor for key, tensor in raw.items()}
        if len(tensors) != len(raw):
            raise CheckpointError(f"{path} names some tensors in both of peft's styles; save it again with one")
        if MARKS[slot] not in tensors:
            raise CheckpointError(
                f"{path} is no {NAMES[slot]}: it has no {MARKS[slot].removeprefix(PREFIXES[slot])}; give the right file to --{slot}"
            )
        slots[slot] = join_vision_biases(tensors)
        try:
            tables[slot].plan(slots[slot])
        except CheckpointError as error:
            raise CheckpointError(f"--{slot}: {error}") from error
    _check_pair(slots["checkpoint"], text_config)
    return UpstreamTensors(slots, text_config.num_attention_heads)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors`, of its entry "model" where it has one. Only weights are read, code never.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than weights.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; see salticid convert tinygpt-v --help for what goes where")
    if path.suffix == ".safetensors":
        return read_file(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols; what cannot be read is refused below
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is damaged or holds pickled code, which is never run; use a file of weights alone") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged; download it again") from error
    if isinstance(held, Mapping) and isinstance(held.get("model"), Mapping):
        held = held["model"]
    if not isinstance(held, Mapping) or not held or not all(isinstance(tensor, Tensor) for tensor in held.values()):
        raise CheckpointError(f"{path} holds no dictionary of tensors, nor one under 'model'; give a checkpoint of weights")
    return dict(held)


def whole_name(name: str) -> str:
    """Upstream's name without what peft's versions put in."""
    for written, meant in PEFT_STYLES.items():
        name = name.replace(written, meant)
    return name


def regroup_heads(fused: Tensor, heads: int, back: bool = False) -> Tensor:
    """Rows of a fused projection from upstream's order, (head, q k v, depth), to (q k v, head, depth), or `back`."""
    first, second = (3, heads) if back else (heads, 3)
    return fused.reshape(first, second, -1, *fused.shape[1:]).transpose(0, 1).reshape(fused.shape)


def join_vision_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EVA learns no bias for keys: `q_bias` and `v_bias` become `qkv.bias`, zero between."""
    joined = dict(tensors)
    for name in [name for name in tensors if name.endswith(".attn.q_bias")]:
        block = name.removesuffix("q_bias")
        if block + "v_bias" not in joined:
            raise CheckpointError(f"{block}v_bias is missing beside q_bias; download the vision file again")
        query, value = joined.pop(name), joined.pop(block + "v_bias")
        joined[block + "qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])
    return joined


def split_vision_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back from `join_vision_biases`; raises `CheckpointError` where keys have learned a bias."""
    split = dict(tensors)
    for name in [name for name in tensors if name.startswith("visual_encoder.") and name.endswith(".attn.qkv.bias")]:
        query, key, value = split.pop(name).chunk(3)
        if key.any():
            raise CheckpointError(f"{name} has a bias for keys, which upstream's vision tower cannot hold")
        split[name.replace("qkv.bias", "q_bias")], split[name.replace("qkv.bias", "v_bias")] = query, value
    return split


def _check_pair(checkpoint: Mapping[str, Tensor], text_config: PreTrainedConfig) -> None:
    layers = {int(match[1]) for name in checkpoint if (match := re.match(r"llama_model\.model\.layers\.(\d+)\.", name))}
    width = checkpoint["llama_proj2.weight"].shape[0] if "llama_proj2.weight" in checkpoint else text_config.hidden_size
    count = len(layers) or text_config.num_hidden_layers
    if (width, count) != (text_config.hidden_size, text_config.num_hidden_layers):
        raise CheckpointError(
            f"the checkpoint was trained on a language model of width {width} with {count} layers, but the folder's has width "
            f"{text_config.hidden_size} and {text_config.num_hidden_layers} layers; give Phi-2 (2.7B)"
        )
    if missing := [name for name in ("llama_proj.bias", "llama_proj2.weight", "llama_proj2.bias") if name not in checkpoint]:
        raise CheckpointError(f"the checkpoint lacks {listed(missing)}; download it again")
