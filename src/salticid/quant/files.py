"""Safetensors files read a few rows at a time and written a few rows at a time, so that no tensor need be whole in memory.

Format: eight bytes of length, a header in JSON padded with spaces, the tensors one behind the other
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salticid.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "I64": torch.int64,
    "I32": torch.int32,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Where tensors start: at what every kernel and every cache line is happy with.
ALIGNMENT = 64


@dataclass(frozen=True)
class Like:
    """Shape and dtype of a tensor that is elsewhere."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource:
    """The tensors of a model folder, in one file or in shards. A file is mapped for as long as it takes to read from it.

    Raises:
        CheckpointError: there are no weights, or a file is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._files = _where(self.folder)
        self.likes: dict[str, Like] = {}
        for path in sorted(set(self._files.values())):
            try:
                with safe_open(path, "pt") as file:
                    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
                    self.likes |= {name: Like(tuple(part.get_shape()), DTYPES[part.get_dtype()]) for name, part in slices.items()}
            except (SafetensorError, OSError, KeyError) as error:
                raise CheckpointError(f"{path} is missing, damaged or holds unusual tensors; copy or download it again") from error
        if lost := sorted(set(self._files) - set(self.likes)):
            raise CheckpointError(
                f"the shards in {self.folder} lack {len(lost)} tensors of their index, such as {lost[0]}; copy them again"
            )

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name).clone()

    def rows(self, name: str, first: int, last: int, expert: int | None = None) -> Tensor:
        """Rows `first` to `last` of a matrix (N, K), or of one expert's in (E, N, K), in a new float32 tensor."""
        with safe_open(self._files[name], "pt") as file:
            part = file.get_slice(name)
            return (part[first:last] if expert is None else part[expert : expert + 1, first:last][0]).to(torch.float32, copy=True)


def _where(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            return {name: folder / file for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of shards; copy or download it again") from error
    single = folder / "model.safetensors"
    try:
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{single} is missing or damaged; copy or download it again") from error


class TensorFile:
    """A safetensors file whose tensors are announced first and written in any order, in parts.

    Tensors whose size is a multiple of `ALIGNMENT` come first, so that they are aligned; no gaps are allowed between tensors.
    """

    def __init__(self, path: Path, likes: Mapping[str, Like]):
        self.path, self.likes = path, dict(likes)
        self._left = {name: like.nbytes for name, like in likes.items()}
        self._starts: dict[str, int] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> TensorFile:
        entries, end = {}, 0
        for name, like in sorted(self.likes.items(), key=lambda item: (item[1].nbytes % ALIGNMENT != 0, -item[1].dtype.itemsize, item[0])):
            entries[name] = {"dtype": NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [end, end + like.nbytes]}
            self._starts[name] = end
            end += like.nbytes
        header = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        self._file = self.path.open("wb")
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._starts = {name: start + 8 + len(header) for name, start in self._starts.items()}
        self._file.truncate(8 + len(header) + end)
        return self

    def write(self, name: str, part: Tensor, first: int = 0) -> None:
        """Write `part` of tensor `name`, in its dtype, `first` elements behind the tensor's start."""
        assert self._file is not None
        like = self.likes[name]
        if part.dtype != like.dtype:
            raise CheckpointError(f"{name} is {part.dtype} but was announced as {like.dtype}")
        self._file.seek(self._starts[name] + first * like.dtype.itemsize)
        content: Any = part.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        self._file.write(content)
        self._left[name] -= part.nbytes

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()
        if kind is None and (unfinished := [name for name, left in self._left.items() if left]):
            raise CheckpointError(f"{len(unfinished)} tensors were not written whole, such as {unfinished[0]}")
