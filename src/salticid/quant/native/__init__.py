"""Salticid's own kernels for small weights, written in C (`kernels.c`) and compiled while the package is installed.

They round activations to 8 bits, in blocks of 32 inputs with a scale each, and multiply whole numbers. Torch's packed kernels keep
activations in bfloat16 and are bound by their arithmetic; these are bound by how fast memory gives the weights, see
`benchmarks/kernels.md`. Where the library was not compiled, or the processor lacks AVX-512 with VNNI and VBMI, torch's serve.

`SALTICID_NATIVE=0` in the environment turns them off. Threads are those of torch, whose OpenMP they share.

Shape legend: M rows of activations, K inputs, N outputs, T tiles, G groups, P outputs filled up to whole tiles.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch
from torch import Tensor

from salticid.quant.native.build import LIBRARY

SWITCH = "SALTICID_NATIVE"

_ADDRESS, _COUNT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_FUNCTIONS = {
    "salticid_int4_multiply": (_ADDRESS, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _COUNT, _ADDRESS, _INT),
    "salticid_int8_multiply": (_ADDRESS, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _INT),
}


@cache
def why_not() -> str | None:
    """Why these kernels are not used in this process; `None` where they are."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH} is 0"
    if not LIBRARY.exists():
        return "they were not compiled when the package was installed (is there a C compiler?)"
    try:
        library = _open()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be used: {error}"
    return None if library.salticid_supported() else "the processor lacks AVX-512 with VNNI and VBMI"


def available() -> bool:
    return why_not() is None


@cache
def _open() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    for name, arguments in _FUNCTIONS.items():
        getattr(library, name).argtypes = arguments
    return library


def serves(x_MK: Tensor, scale: Tensor) -> bool:
    """Can a product be computed here? bfloat16 on the CPU alone: whoever asks for float32 wants its digits."""
    return (
        x_MK.shape[0] > 0
        and x_MK.dtype == scale.dtype == torch.bfloat16
        and x_MK.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not (x_MK.requires_grad and torch.is_grad_enabled())  # rounding has no gradient
        and available()
    )


def int4_multiply(x_MK: Tensor, weight_TKb: Tensor, scale_zero_GP2: Tensor, rows: int, bias_N: Tensor | None = None) -> Tensor:
    """bfloat16 (M, K) -> (M, N = rows); weights, scales and zeros as in `quant.int4`, scales, zeros and bias in bfloat16."""
    x_MK = x_MK.contiguous()
    count, width = x_MK.shape
    y_MN = torch.empty(count, rows, dtype=torch.bfloat16)
    groups, filled, _ = scale_zero_GP2.shape
    done = _open().salticid_int4_multiply(
        x_MK.data_ptr(),
        count,
        width,
        weight_TKb.data_ptr(),
        scale_zero_GP2.data_ptr(),
        filled,
        width // groups,
        None if bias_N is None else bias_N.data_ptr(),
        rows,
        y_MN.data_ptr(),
        torch.get_num_threads(),
    )
    return _made(y_MN, done)


def int8_multiply(x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """bfloat16 (M, K) -> (M, N); weights int8, scales and bias in bfloat16."""
    x_MK = x_MK.contiguous()
    (count, width), outputs = x_MK.shape, len(weight_NK)
    y_MN = torch.empty(count, outputs, dtype=torch.bfloat16)
    done = _open().salticid_int8_multiply(
        x_MK.data_ptr(),
        count,
        width,
        weight_NK.data_ptr(),
        scale_N.data_ptr(),
        None if bias_N is None else bias_N.data_ptr(),
        outputs,
        y_MN.data_ptr(),
        torch.get_num_threads(),
    )
    return _made(y_MN, done)


def _made(y_MN: Tensor, done: int) -> Tensor:
    if not done:
        raise MemoryError("no memory for the rounded activations of a product")
    return y_MN
