"""Products of a few rows with weights in 8 and 4 bits on a GPU, in Triton: weights are read once, as they lie, and widened in registers.

Triton comes with torch's own wheels for GPUs. Without it, and for more rows, weights are unpacked in parts and multiplied by torch. The
kernels also run in Triton's interpreter on a processor (`TRITON_INTERPRET=1`), which is how they are tested where there is no GPU.

Shape legend: M rows of activations, N output channels, P the same filled up, K input channels, T tiles of 64 rows, G groups, S splits.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

# One block of rows: what the smallest product of a tensor core takes, so that a batch of sixteen costs what one row does.
MOST_ROWS = 16
# Output channels, and input channels at a time, of one program in 8 bits. In 4 bits they are a tile and a group.
INT8_OUTPUTS, INT8_INPUTS = 64, 128
# Programs per multiprocessor: enough of them that memory is always being read.
PROGRAMS = 4
# In Triton's interpreter tensors lie in the processor's memory, and there are as many programs as on a small GPU.
INTERPRETED_DEVICE, INTERPRETED_PROCESSORS = "cpu", 4


def serves(x_MK: Tensor) -> bool:
    """Do the kernels multiply these rows? No gradient passes through them."""
    return 0 < len(x_MK) <= most_rows(x_MK.device) and not (x_MK.requires_grad and torch.is_grad_enabled())


def most_rows(device: torch.device) -> int:
    """How many rows the kernels multiply there; 0 where they do not run."""
    return MOST_ROWS if device.type == _device() and kernels() is not None else 0


def int8_multiply(x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(M, K) -> (M, N) in the dtype of x, M at most `MOST_ROWS`; summed in float32. int8 (N, K), scales (N,)."""
    x_MK, (rows, inputs), outputs = _by_rows(x_MK), x_MK.shape, len(weight_NK)
    programs, blocks = -(-outputs // INT8_OUTPUTS), -(-inputs // INT8_INPUTS)
    splits, each = _split(blocks, programs, x_MK.device)
    sums_SMN = x_MK.new_empty(splits, rows, outputs, dtype=torch.float32)
    kernels().int8[programs, splits](
        x_MK, weight_NK, sums_SMN, rows, outputs, inputs, x_MK.stride(0), weight_NK.stride(0), each,
        MOST_ROWS, INT8_OUTPUTS, INT8_INPUTS,
    )  # fmt: skip
    return _finish(sums_SMN.sum(dim=0) * scale_N.float(), bias_N, x_MK.dtype)


def int4_multiply(
    x_MK: Tensor, weight_TKb: Tensor, scale_zero_GP2: Tensor, rows: int, bias_N: Tensor | None = None, input_scale_K: Tensor | None = None
) -> Tensor:
    """(M, K) -> (M, N) in the dtype of x, M at most `MOST_ROWS`; summed in float32. Tiles (T, K, 32), scales and zeros (G, P, 2)."""
    x_MK = _by_rows(x_MK if input_scale_K is None else x_MK * input_scale_K.to(x_MK.dtype))
    (tiles, inputs, half), (groups, filled) = weight_TKb.shape, scale_zero_GP2.shape[:2]
    splits, each = _split(groups, tiles, x_MK.device)
    sums_SMP = x_MK.new_empty(splits, len(x_MK), filled, dtype=torch.float32)
    kernels().int4[tiles, splits](
        x_MK, weight_TKb, scale_zero_GP2, sums_SMP, len(x_MK), filled, inputs, groups, x_MK.stride(0), each,
        MOST_ROWS, half, inputs // groups,
    )  # fmt: skip
    return _finish(sums_SMP.sum(dim=0)[:, :rows], bias_N, x_MK.dtype)


def _by_rows(x_MK: Tensor) -> Tensor:
    return x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()


def _finish(y_MN: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y_MN if bias_N is None else y_MN + bias_N.float()).to(dtype)


def _split(parts: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Into how many programs the inputs of one output are split, and how many of their parts each one reads; none is without any."""
    wanted = -(-PROGRAMS * _processors(device) // programs)
    each = -(-parts // min(parts, wanted))
    return -(-parts // each), each


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else INTERPRETED_PROCESSORS


def _device() -> str:
    return INTERPRETED_DEVICE if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@cache
def kernels() -> Any:
    """The module of the kernels; `None` where `why_not` has a reason."""
    return None if why_not() else import_module("salticid.quant.triton_kernels")


@cache
def why_not() -> str | None:
    """The reason why the kernels do not run here; `None` where they do."""
    if _device() == "cuda" and not torch.cuda.is_available():
        return "no GPU"
    return None if find_spec("triton") else "Triton is not installed"
