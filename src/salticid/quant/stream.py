"""Float tensors in, small tensors out, a few rows at a time: how a model larger than memory is quantised.

The tensors that a quantised folder holds follow from its configuration alone: the model is made twice on "meta", as it is and as it
will be, and the difference is the plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from salticid.errors import CheckpointError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.quant import int4, int8
from salticid.quant.files import Like, TensorFile
from salticid.quant.hf import is_stored_in_bfloat16
from salticid.quant.plan import Place, Precision, make_plan
from salticid.quant.swap import swap_to_small

# Elements that are rounded at a time.
CHUNK = 2**22
# Scales are numbers of bfloat16; float16 would lose the small ones.
SCALE_DTYPES = {torch.float32: torch.float32, torch.bfloat16: torch.bfloat16, torch.float16: torch.bfloat16}
SCALE = re.compile(r".*[._](scale|scale_zero|input_scale)")


class Source(Protocol):
    """Where float tensors come from: a folder, or chance."""

    likes: dict[str, Like]

    def read(self, name: str) -> Tensor: ...

    def rows(self, name: str, first: int, last: int, expert: int | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Matrix:
    """A weight that is rounded: (rows, width), or (experts, rows, width). Its scales are called `prefix` + "scale" and the like."""

    name: str
    prefix: str
    experts: int | None
    rows: int
    width: int
    place: Place


@dataclass(frozen=True)
class Blueprint:
    """Tensors of a model before and after. `matrices` change, all others of `small` are copied."""

    matrices: list[Matrix]
    plain: dict[str, Like]
    small: dict[str, Like]
    tied: frozenset[str]


def draw_up(config: VisionLanguageConfig, precision: Precision) -> Blueprint:
    """Raises `ConfigurationError` for a model that cannot be quantised."""
    with torch.device("meta"):
        model = VisionLanguageModel(config)
        places = make_plan(model, precision)
        tied = frozenset(model.all_tied_weights_keys)
        plain = _likes(model)
        swap_to_small(model, precision)
        small = {name: like for name, like in _likes(model).items() if name not in model.all_tied_weights_keys}
    matrices = [matrix for place in places for matrix in _matrices(place, plain) if matrix.name not in tied]
    return Blueprint(matrices, {name: like for name, like in plain.items() if name not in tied}, small, tied)


def _likes(model: VisionLanguageModel) -> dict[str, Like]:
    return {name: Like(tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}


def _matrices(place: Place, plain: dict[str, Like]) -> Iterator[Matrix]:
    names = ["weight"] if place.kind != "experts" else ["gate_up_proj", "up_proj", "down_proj"]
    for name in (f"{place.name}.{name}" for name in names):
        if name in plain:
            *experts, rows, width = plain[name].shape
            prefix = f"{name}_" if experts else name.removesuffix("weight")
            yield Matrix(name, prefix, experts[0] if experts else None, rows, width, place)


def check_source(blueprint: Blueprint, source: Source) -> None:
    """Raises `CheckpointError` where the source lacks tensors of the model, or they are of another size, or there are more."""
    missing = sorted(set(blueprint.plain) - set(source.likes))
    extra = sorted(set(source.likes) - set(blueprint.plain) - blueprint.tied)
    wrong = sorted(name for name, like in blueprint.plain.items() if name in source.likes and source.likes[name].shape != like.shape)
    problems = {"missing": missing, "unexpected": extra, "of another size": wrong}
    found = [f"{len(names)} {what} ({names[0]})" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(f"the weights do not fit config.json: {'; '.join(found)}")


def stored_likes(blueprint: Blueprint, source: Source) -> dict[str, Like]:
    """What the file will hold: small tensors as they are, others in the source's dtype, the vision tower's matrices in bfloat16."""
    origin = {matrix.prefix: source.likes[matrix.name].dtype for matrix in blueprint.matrices}

    def stored(name: str, like: Like) -> torch.dtype:
        if not like.dtype.is_floating_point:
            return like.dtype
        if name.endswith("scale_zero"):
            return torch.bfloat16
        if SCALE.fullmatch(name) and (dtype := origin.get(name.removesuffix("input_scale").removesuffix("scale"))):
            return SCALE_DTYPES[dtype]
        return torch.bfloat16 if is_stored_in_bfloat16(name, torch.empty(like.shape, device="meta")) else source.likes[name].dtype

    return {name: Like(like.shape, stored(name, like)) for name, like in blueprint.small.items()}


def write_small(
    file: TensorFile,
    blueprint: Blueprint,
    source: Source,
    calibrated: Iterable[tuple[str, dict[str, Tensor]]] = (),
    progress: Callable[[str], None] = lambda name: None,
    levels: int = int8.LEVELS,
) -> None:
    """Write all tensors of a quantised model.

    Args:
        calibrated: (name of a matrix, its small tensors by the ends of their names) of those that need more than their own weights; the
            others are rounded to the nearest.
        progress: called with the name of each tensor that is done.
        levels: of matrices in 8 bits, see `int8.quantize_rows`.
    """
    done = set()
    for name, tensors in calibrated:
        matrix = next(matrix for matrix in blueprint.matrices if matrix.name == name)
        for end, tensor in tensors.items():
            target = matrix.name if end == "weight" else matrix.prefix + end
            file.write(target, tensor.to(file.likes[target].dtype))
        done.add(name)
        progress(name)
    for matrix in blueprint.matrices:
        if matrix.name not in done:
            _round(file, matrix, source, levels)
            progress(matrix.name)
    changed = {matrix.name for matrix in blueprint.matrices}
    for name, like in file.likes.items():
        if name not in changed and name in source.likes:
            file.write(name, source.read(name).to(like.dtype))


def _round(file: TensorFile, matrix: Matrix, source: Source, levels: int) -> None:
    """To the nearest; one scale per row, or grids of groups."""
    step = max(1, CHUNK // matrix.width // int4.TILE) * int4.TILE
    for index in range(matrix.experts or 1):
        expert = index if matrix.experts else None
        scales = []
        for first in range(0, matrix.rows, step):
            rows = source.rows(matrix.name, first, min(first + step, matrix.rows), expert)
            weight, scale = (
                int8.quantize_rows(rows, levels) if matrix.place.group is None else int4.quantize_groups(rows, matrix.place.group)
            )
            file.write(matrix.name, weight, _codes(matrix, matrix.rows) * index + _codes(matrix, first))
            scales.append(scale)
        name, along = ("scale", 0) if matrix.place.group is None else ("scale_zero", 1)
        scale = torch.cat(scales, dim=along).to(file.likes[matrix.prefix + name].dtype)
        file.write(matrix.prefix + name, scale, index * scale.numel())
        if matrix.place.scaled:
            ones = torch.ones(matrix.width, dtype=file.likes[f"{matrix.prefix}input_scale"].dtype)
            file.write(f"{matrix.prefix}input_scale", ones, index * matrix.width)


def _codes(matrix: Matrix, rows: int) -> int:
    """Elements that so many rows take in the file."""
    if matrix.place.group is None:
        return rows * matrix.width
    return -(-rows // int4.TILE) * int4.TILE // 2 * matrix.width
