"""Salticid's own kernels for small weights, for the attention of a token and for a whole decoder's step (`step.py`), written in C and
compiled while the package is installed (`build.py`).

They round activations to 8 bits, in blocks of 32 inputs with a scale each, and multiply whole numbers. Torch's packed kernels keep
activations in bfloat16 and are bound by their arithmetic; these are bound by how fast memory gives the weights, see
`benchmarks/kernels.md`. Where the library was not compiled, or the processor lacks AVX-512 with VNNI and VBMI, torch's serve.

`SALTICID_NATIVE=0` in the environment turns them off. Threads are those of torch, whose OpenMP they share.

Shape legend: M rows of activations, K inputs, N outputs, T tiles, G groups, P outputs filled up to whole tiles;
of attention B rows, G key-value heads, N query heads to each, S tokens, K depth of a head.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch
from torch import Tensor

from salticid.quant.native.build import LIBRARY

SWITCH = "SALTICID_NATIVE"

_ADDRESS, _COUNT, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_DOUBLE = ctypes.c_double
_PAIR, _STEPS, _SIZES, _PROMPT = (ctypes.c_long * count for count in (2, 3, 5, 7))
_FUNCTIONS = {
    "salticid_int4_multiply": (_ADDRESS, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _COUNT, _ADDRESS, _INT),
    "salticid_attend": (_ADDRESS, _ADDRESS, _STEPS, _ADDRESS, _STEPS, _ADDRESS, _COUNT, _SIZES, _FLOAT, _FLOAT, _ADDRESS, _INT),
    "salticid_attend_prompt": (_ADDRESS, _COUNT, _ADDRESS, _PAIR, _ADDRESS, _PAIR, _PROMPT, _DOUBLE, _DOUBLE, _ADDRESS, _INT),
    "salticid_activate": (_ADDRESS, _COUNT, _ADDRESS, _COUNT, _COUNT, _COUNT, _INT, _ADDRESS, _INT),
    "salticid_step": (_ADDRESS, _ADDRESS, _INT),
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


def attend(q_BGNK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_B11S: Tensor | None, scale: float, softcap: float | None = None) -> Tensor:
    """Softmax attention of one token of each row, (B, G, N, K) in bfloat16; weights and sums are float32.

    Args:
        k_BGSK: the transpose of keys that lie channel by channel, (B, G, K, S); v_BGSK: token by token. mask_B11S: added to the scores.
        softcap: Gemma 2's bound on the scores.
    """
    q_BGNK = q_BGNK.contiguous()
    y_BGNK = torch.empty_like(q_BGNK)
    rows, groups, shared, depth = q_BGNK.shape
    key, value = k_BGSK.stride(), v_BGSK.stride()
    done = _open().salticid_attend(
        q_BGNK.data_ptr(),
        k_BGSK.data_ptr(),
        _STEPS(key[0], key[1], key[3]),
        v_BGSK.data_ptr(),
        _STEPS(value[0], value[1], value[2]),
        None if mask_B11S is None else mask_B11S.data_ptr(),
        0 if mask_B11S is None else mask_B11S.stride(0),
        _SIZES(rows, groups, shared, depth, k_BGSK.shape[2]),
        scale,
        softcap or 0.0,
        y_BGNK.data_ptr(),
        torch.get_num_threads(),
    )
    return _made(y_BGNK, done)


def attend_prompt(
    q_THK: Tensor, k_GSK: Tensor, v_GSK: Tensor, scale: float, softcap: float | None = None, window: int | None = None, causal: bool = True
) -> Tensor:
    """The last T of S tokens over those up to themselves, or over all, (T, H, K) in bfloat16; sums are float32.

    Args:
        q_THK: heads of one token side by side. k_GSK: the transpose of keys that lie channel by channel; v_GSK: token by token.
        softcap: Gemma 2's bound on the scores. window: how many tokens each one sees, itself included.
    """
    new, heads, depth = q_THK.shape
    q_THK = q_THK if q_THK.stride()[1:] == (depth, 1) else q_THK.contiguous()
    y_THK = torch.empty(new, heads, depth, dtype=torch.bfloat16)
    key, value = k_GSK.stride(), v_GSK.stride()
    done = _open().salticid_attend_prompt(
        q_THK.data_ptr(),
        q_THK.stride(0),
        k_GSK.data_ptr(),
        _PAIR(key[0], key[2]),
        v_GSK.data_ptr(),
        _PAIR(value[0], value[1]),
        _PROMPT(new, k_GSK.shape[1], heads, k_GSK.shape[0], depth, window or 0, causal),
        scale,
        softcap or 0.0,
        y_THK.data_ptr(),
        torch.get_num_threads(),
    )
    return _made(y_THK, done)


def activates(x_MF: Tensor) -> bool:
    """Can `activate` compute here? Whoever asks for float32, or for gradients, wants torch's."""
    return x_MF.dtype == torch.bfloat16 and x_MF.device.type == "cpu" and x_MF.ndim == 2 and not x_MF.requires_grad and available()


def activate(x_MF: Tensor, kind: int, up_MF: Tensor | None = None) -> Tensor:
    """SiLU (`step.SILU`) or GELU (`step.GELU_TANH`) of bfloat16 (M, F), times `up_MF` where it is given."""
    x_MF = x_MF if x_MF.stride(1) == 1 else x_MF.contiguous()
    up_MF = up_MF if up_MF is None or up_MF.stride(1) == 1 else up_MF.contiguous()
    y_MF = torch.empty(x_MF.shape, dtype=torch.bfloat16)
    gates, gate_step = (None, 0) if up_MF is None else (up_MF.data_ptr(), up_MF.stride(0))
    _open().salticid_activate(
        x_MF.data_ptr(), x_MF.stride(0), gates, gate_step, *x_MF.shape, kind, y_MF.data_ptr(), torch.get_num_threads()
    )
    return y_MF


def run_step(decoder: ctypes.Structure, token: ctypes.Structure, logits_V: Tensor) -> Tensor:
    """Read one token; see `salticid.quant.native.step`, which makes the structures."""
    return _made(logits_V, _open().salticid_step(ctypes.byref(decoder), ctypes.byref(token), torch.get_num_threads()))


def _made(y_MN: Tensor, done: int) -> Tensor:
    if not done:
        raise MemoryError("no memory for what a product or attention needs beside its result")
    return y_MN
