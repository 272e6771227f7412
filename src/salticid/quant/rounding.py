"""Rounding to four bits that looks at what a layer is given, and the statistics of inputs that it needs.

M rows of inputs, N output channels, P the same filled up, K input channels, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from salticid.quant.int4 import LEVELS, MIDDLE, choose_grid, dequantize, pack, round_to_grid

Small = dict[str, Tensor]

GPTQ_BLOCK = 128
AWQ_STEPS = 20
ROWS_PER_SAMPLE = 16


class InputStatistics:
    """What is kept of a layer's inputs: squares per channel, some rows, and the products of all channels where they are wanted."""

    def __init__(self, width: int, with_products: bool):
        self.squares_K = torch.zeros(width)
        self.products_KK = torch.zeros(width, width) if with_products else None
        self.count = 0
        self._rows: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Inputs (..., K) of one sample."""
        x_MK = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(x_MK):
            return
        self.squares_K += x_MK.square().sum(dim=0)
        if self.products_KK is not None:
            self.products_KK.addmm_(x_MK.T, x_MK)
        self.count += len(x_MK)
        step = -(-len(x_MK) // ROWS_PER_SAMPLE)
        self._rows.append(x_MK[::step].clone())

    @property
    def rows_MK(self) -> Tensor:
        """Some of the inputs, evenly from all samples."""
        return torch.cat(self._rows)


@dataclass(frozen=True)
class RoundingOptions:
    """damping: of the products' diagonal, as a fraction of its mean. act_order: round the channels with the largest inputs first."""

    damping: float = 0.01
    act_order: bool = True


def round_nearest(weight_NK: Tensor, group: int) -> Small:
    """`weight` and `scale_zero` without a look at the inputs."""
    grid = choose_grid(weight_NK, group)
    return {"weight": pack(round_to_grid(weight_NK, grid)), "scale_zero": grid}


def awq(weight_NK: Tensor, inputs: InputStatistics, group: int, options: RoundingOptions) -> Small:
    """Activation-aware weights (arXiv 2306.00978, section 3.2): inputs that are large get finer steps.

    Weights are multiplied by s = rms(input) ^ a before rounding, and inputs by 1 / s before the product. a is the one of `AWQ_STEPS` + 1
    values from 0 (to the nearest) to 1 with the smallest error of the layer's output on the kept rows. s stays beside the layer as its
    `input_scale` rather than being folded into the norm before it, so that layers that share a norm have scales of their own.
    """
    rms_K = (inputs.squares_K / max(inputs.count, 1)).sqrt().clamp(min=1e-6)
    x_MK, best, least = inputs.rows_MK, None, float("inf")
    for step in range(AWQ_STEPS + 1):
        scale_K = rms_K ** (step / AWQ_STEPS)
        scale_K = (scale_K / (scale_K.max() * scale_K.min()).sqrt()).clamp(1e-3, 1e3).bfloat16().float()
        small = round_nearest(weight_NK * scale_K, group) | {"input_scale": (1 / scale_K).bfloat16().float()}
        error = (x_MK @ (rounded_weight(small, weight_NK.shape[0]) - weight_NK).T).norm().item()
        if best is None or error < least:
            best, least = small, error
    assert best is not None
    return best


def gptq(weight_NK: Tensor, inputs: InputStatistics, group: int, options: RoundingOptions) -> Small:
    """GPTQ (arXiv 2210.17323, algorithm 1): column by column, each rounding error is made good in the columns that are left.

    With `act_order` the grids are chosen first, from the weights as they are, so that columns keep their places in the file.
    """
    assert inputs.products_KK is not None
    rows, width = weight_NK.shape
    grid_GP2 = choose_grid(weight_NK, group)
    order_K = inputs.squares_K.argsort(descending=True) if options.act_order else torch.arange(width)
    inverse_KK = _inverse_factor(inputs.products_KK, options.damping, order_K)
    left_NK = weight_NK.float()[:, order_K]
    codes_NK = torch.empty(rows, width, dtype=torch.uint8)
    for first in range(0, width, GPTQ_BLOCK):
        last = min(first + GPTQ_BLOCK, width)
        block_Nb, factor_bb = left_NK[:, first:last].clone(), inverse_KK[first:last, first:last]
        errors_Nb = torch.zeros_like(block_Nb)
        for column in range(last - first):
            place = int(order_K[first + column])
            if not options.act_order and place % group == 0:
                grid_GP2[place // group] = choose_grid(block_Nb[:, column : column + group], group)[0]
            scale_N, zero_N = grid_GP2[place // group, :rows].unbind(-1)
            code_N = _code(block_Nb[:, column], scale_N, zero_N)
            codes_NK[:, place] = code_N.to(torch.uint8)
            errors_Nb[:, column] = (block_Nb[:, column] - (code_N - MIDDLE) * scale_N - zero_N) / factor_bb[column, column]
            block_Nb[:, column:] -= errors_Nb[:, column, None] * factor_bb[column, column:]
        left_NK[:, last:] -= errors_Nb @ inverse_KK[first:last, last:]
    return {"weight": pack(codes_NK), "scale_zero": grid_GP2}


def _code(values_N: Tensor, scale_N: Tensor, zero_N: Tensor) -> Tensor:
    return ((values_N - zero_N) / torch.where(scale_N > 0, scale_N, 1.0)).round_().add_(MIDDLE).clamp_(0, LEVELS - 1)


def _inverse_factor(products_KK: Tensor, damping: float, order_K: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped products, channels in the order in which they are rounded."""
    damped_KK = products_KK[order_K][:, order_K]
    diagonal_K = damped_KK.diagonal()
    mean = diagonal_K.mean().clamp(min=1e-12)
    diagonal_K += damping * mean + (diagonal_K == 0) * mean
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped_KK)), upper=True)


SOLVERS: dict[str, Callable[[Tensor, InputStatistics, int, RoundingOptions], Small]] = {"awq": awq, "gptq": gptq}


def rounded_weight(small: Small, rows: int) -> Tensor:
    """What a layer with these tensors multiplies its inputs by: (N, K) float32."""
    weight_NK = dequantize(small["weight"], small["scale_zero"], torch.float32)[:rows]
    return weight_NK * small["input_scale"].float() if "input_scale" in small else weight_NK


def output_error(weight_NK: Tensor, small: Small, x_MK: Tensor) -> float:
    """Norm of the error of the layer's outputs on these inputs, relative to the outputs."""
    difference_NK = rounded_weight(small, weight_NK.shape[0]) - weight_NK
    return ((x_MK @ difference_NK.T).norm() / (x_MK @ weight_NK.T).norm().clamp(min=1e-12)).item()
