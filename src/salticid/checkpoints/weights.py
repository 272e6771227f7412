"""Weights on disk, whatever upstream wrote them with: `.safetensors` or `.bin`, in one file or in shards."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from salticid.errors import CheckpointError

# In the order of preference; of each the index of shards first.
WEIGHT_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
SHARD_BYTES = 2 * 1024**3


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, on the CPU, mapped from disk where the format allows it, in their own dtype.

    Raises:
        CheckpointError: there are no weights, a shard is missing, or a file is damaged or holds more than tensors.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return _read_shards(folder / name) if name.endswith(".index.json") else read_file(folder / name)
    raise CheckpointError(f"no weights in {folder}; it must hold one of {', '.join(WEIGHT_FILES)}")


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one `.safetensors` or `.bin` file; errors as `read_weights`."""
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing in {path.parent}; copy the whole checkpoint there")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is truncated, damaged, or holds more than tensors; download it again") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} is no plain dictionary of tensors; give a model checkpoint, not a training state")
    return dict(tensors)


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        where = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{index} is no index of shards; download it again") from error
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        tensors |= read_file(index.parent / name)
    if missing := sorted(set(where) - set(tensors)):
        raise CheckpointError(
            f"the shards in {index.parent} lack {len(missing)} tensors of their index, such as {missing[0]}; download them again"
        )
    return tensors


def write_weights(
    folder: Path, shapes: Mapping[str, Tensor], tensors: Iterator[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `model.safetensors`, in shards when it is large, one shard in memory at a time.

    Args:
        folder: an existing folder.
        shapes: name to a tensor of the right shape and dtype, on the meta device perhaps, in the order in which `tensors` come.
        tensors: the tensors themselves, made one after another.
        shard_bytes: largest size of a shard, but for a single larger tensor.
    """
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, like in shapes.items():
        if like.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= like.nbytes
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        metadata = {"total_size": sum(like.nbytes for like in shapes.values())}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": metadata, "weight_map": where}, indent=2))
    for file, names in zip(files, shards, strict=True):
        shard = {}
        for name in names:
            made, tensor = next(tensors)
            if made != name:
                raise CheckpointError(f"weights came in another order than announced: {made} in place of {name}")
            shard[name] = tensor.contiguous()
        save_file(shard, folder / file, metadata={"format": "pt"})
