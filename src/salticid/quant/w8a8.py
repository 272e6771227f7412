"""Products of 8-bit weights with activations that are rounded to 8 bits too, for prompts.

Each token has a scale of its own, but a few input channels of language models hold values tens of times larger than the others (LLM.int8(),
arXiv 2208.07339), and one scale for both would round the others away. So the channels with the largest values stay as they are: their
part of the product is computed in float. Their columns of the weight come out of the integer product, by rows that are one at one channel
each; picking them out of memory one by one would take longer.

Shape legend: M rows of activations, N output channels, K input channels, C exact channels, n output channels of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from salticid.quant.processor import largest_int8_weight

EXACT_CHANNELS = 16
# Output channels that are multiplied at a time, so that sums are scaled while the processor's cache holds them.
BLOCK = 1024
# Activations that are rounded at a time.
ROUNDED_AT_A_TIME = 2**18

# With fewer rows, or where a side of the weight is shorter, rounding and scaling take what the product saves.
LEAST_ROWS = 17
LEAST_SIDE = 1280

# Weights of 8 bits need this range; those of 4 bits, which are rounded again, make do with what the processor has.
NEEDED_WEIGHT = {8: 127, 4: 1}

# A part of the weight, int8 (K, n) with any strides, and the scales of its columns, float32 (n,).
Block = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RoundedRows:
    """Activations in 8 bits. `codes` int8 (M + C, K): below the M rows, one row with a one for each exact channel.

    `scale` float32 (M, 1); `exact` float32 (M, C), the values in the exact channels, whose codes are zero.
    """

    codes: Tensor
    scale: Tensor
    exact: Tensor


def round_rows(x_MK: Tensor) -> RoundedRows:
    """Round each row by a scale of its own, with the channels that hold the largest values left out."""
    rows, width = x_MK.shape
    channels_C = x_MK.abs().amax(dim=0).topk(min(EXACT_CHANNELS, width)).indices
    exact_MC = x_MK[:, channels_C].float()
    codes = torch.empty(rows + len(channels_C), width, dtype=torch.int8)
    codes[rows:] = F.one_hot(channels_C, width)
    scale_M1 = torch.empty(rows, 1)
    step = max(1, ROUNDED_AT_A_TIME // width)
    for x, code, scale in zip(x_MK.split(step), codes[:rows].split(step), scale_M1.split(step), strict=True):
        rest = x.to(torch.float32, copy=True).index_fill_(1, channels_C, 0.0)
        torch.amax(rest.abs(), dim=1, keepdim=True, out=scale)
        scale.div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
        code.copy_(rest.div_(scale).round_())
    return RoundedRows(codes, scale_M1, exact_MC)


def serves(x_MK: Tensor, columns: int, bits: int) -> bool:
    """Can and should this product be computed so? float32 never is: who asks for it wants its digits."""
    return (
        not torch.compiler.is_compiling()
        and x_MK.dtype == torch.bfloat16
        and x_MK.device.type == "cpu"
        and not (x_MK.requires_grad and torch.is_grad_enabled())  # rounding has no gradient
        and pays(x_MK.shape[0], (columns, x_MK.shape[1]), bits)
    )


def pays(rows: int, shape: tuple[int, int], bits: int) -> bool:
    """Is a product of so many rows with a weight of that shape (N, K) exact on this processor, and faster than in float?"""
    return rows >= LEAST_ROWS and min(shape) >= LEAST_SIDE and largest_int8_weight() >= NEEDED_WEIGHT[bits]


def multiply(x_MK: Tensor, blocks: Iterator[Block], columns: int, bias_N: Tensor | None = None) -> Tensor:
    """(M, K) -> (M, N) in the dtype of `x`: block after block of the weight, of which `columns` = N are wanted."""
    x = round_rows(x_MK)
    rows, first = len(x.scale), 0
    y_MN = torch.empty(rows, columns, dtype=x_MK.dtype)
    for weight_Kn, scale_n in blocks:
        sums = torch._int_mm(x.codes, weight_Kn)
        y_Mn = (sums[:rows] * x.scale).addmm_(x.exact, sums[rows:].float())
        last = min(first + len(scale_n), columns)
        y_Mn = y_Mn.mul_(scale_n)[:, : last - first]
        y_MN[:, first:last] = y_Mn if bias_N is None else y_Mn.add_(bias_N[first:last])
        first = last
    return y_MN
