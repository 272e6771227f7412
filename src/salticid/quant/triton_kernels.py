"""The kernels of `salticid.quant.gpu`. Each program gives some outputs for a part of their inputs; the parts are added outside."""

from __future__ import annotations

import triton
from triton import language as tl


@triton.jit
def int8(
    x: tl.tensor, weight: tl.tensor, sums: tl.tensor, rows: int, outputs: int, inputs: int,
    x_step: int, weight_step: int, each: int, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
) -> None:  # fmt: skip
    """x (M, K), weight int8 (N, K), sums (S, M, N). `each`: blocks of inputs that one program reads."""
    row, output = tl.arange(0, ROWS), tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    y = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for block in range(tl.program_id(1) * each, tl.minimum((tl.program_id(1) + 1) * each, tl.cdiv(inputs, INPUTS))):
        k = block * INPUTS + tl.arange(0, INPUTS)
        some = tl.load(x + row[:, None] * x_step + k[None, :], (row[:, None] < rows) & (k[None, :] < inputs), 0.0)
        where = output[None, :].to(tl.int64) * weight_step + k[:, None]
        codes = tl.load(weight + where, (output[None, :] < outputs) & (k[:, None] < inputs), 0)
        y += tl.dot(some, codes.to(some.dtype), input_precision="ieee")
    to = (tl.program_id(1) * rows + row[:, None]) * outputs + output[None, :]
    tl.store(sums + to, y, (row[:, None] < rows) & (output[None, :] < outputs))


@triton.jit
def int4(
    x: tl.tensor, weight: tl.tensor, scale_zero: tl.tensor, sums: tl.tensor, rows: int, filled: int, inputs: int, groups: int,
    x_step: int, each: int, ROWS: tl.constexpr, HALF: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """x (M, K), weight uint8 (T, K, 32), scale_zero (G, P, 2), sums (S, M, P). `each`: groups that one program reads."""
    tile, row, byte = tl.program_id(0), tl.arange(0, ROWS), tl.arange(0, HALF)
    low, high = tl.zeros((ROWS, HALF), tl.float32), tl.zeros((ROWS, HALF), tl.float32)
    for group in range(tl.program_id(1) * each, tl.minimum((tl.program_id(1) + 1) * each, groups)):
        k = group * GROUP + tl.arange(0, GROUP)
        some = tl.load(x + row[:, None] * x_step + k[None, :], row[:, None] < rows, 0.0)
        codes = tl.load(weight + (tile.to(tl.int64) * inputs + k[:, None]) * HALF + byte[None, :])
        total = tl.sum(some.to(tl.float32), 1)[:, None]
        line = scale_zero + (group * filled + tile * 2 * HALF + byte) * 2
        low += _on_line(tl.dot(some, (codes & 15).to(some.dtype), input_precision="ieee"), total, line)
        high += _on_line(tl.dot(some, (codes >> 4).to(some.dtype), input_precision="ieee"), total, line + 2 * HALF)
    to = (tl.program_id(1) * rows + row[:, None]) * filled + tile * 2 * HALF + byte[None, :]
    tl.store(sums + to, low, row[:, None] < rows)
    tl.store(sums + to + HALF, high, row[:, None] < rows)


@triton.jit
def _on_line(dots: tl.tensor, total: tl.tensor, line: tl.tensor) -> tl.tensor:
    """What weights (code - 8) * scale + zero give, of what their codes give and the sum of the inputs."""
    scale, zero = tl.load(line).to(tl.float32)[None, :], tl.load(line + 1).to(tl.float32)[None, :]
    return dots * scale + total * (zero - 8.0 * scale)
