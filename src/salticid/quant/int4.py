"""Weights in four bits: groups of inputs share a scale and a zero point.

`weight[n, k] ~ (code[n, k] - 8) * scale + zero`, code in [0, 15], scale and zero of row n's group of 32, 64 or 128 inputs. Both are
numbers that bfloat16 holds, so a model changes between float32 and bfloat16 without any loss. Layers may have an `input_scale`, one
number per input, that activations are multiplied by first (AWQ, arXiv 2306.00978).

Codes lie in tiles of 64 rows: byte [t, k, j] holds row 64 t + j in its low half and row 64 t + 32 + j in its high half. That is how
torch's kernel wants them on processors with AVX-512, so there a mapped file is multiplied where it lies. Elsewhere the kernel has
another order, and a layer is put into it, in memory of its own, when it is first used. Rows are filled up to a multiple of 64.

Shape legend: M rows of activations, N output channels, P the same filled up, T tiles, K input channels, G groups, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salticid.errors import ConfigurationError
from salticid.quant import gpu, native, w8a8
from salticid.quant.int8 import UNPACKED_WEIGHTS, plain_embedding
from salticid.quant.processor import HAS_PACKED_BFLOAT16, largest_int8_weight

GROUPS = (32, 64, 128)
TILE = 64
LEVELS = 16
MIDDLE = 8

# Rows up to which the packed kernel is used on a CPU, by dtype: it reads all weights again for every four rows, while unpacking costs the
# same for any number of rows. A dtype without vector code is absent.
PACKED_ROWS: dict[torch.dtype, int] = {torch.bfloat16: 128} if HAS_PACKED_BFLOAT16 else {}
# Of the weights that are unpacked, how many are in float32 at a time: few enough for the processor's cache.
FLOAT_WEIGHTS = 2**20

HAS_PACKED_KERNEL = hasattr(torch, "_weight_int4pack_mm_for_cpu")


def choose_grid(weight_NK: Tensor, group: int) -> Tensor:
    """Scale and zero of each group, from its least and greatest weight: (G, P, 2) float32, of rows that are filled up zeros.

    Raises:
        ConfigurationError: the weight holds NaN or infinity.
    """
    rows, width = weight_NK.shape
    grouped_NGk = weight_NK.detach().float().view(rows, width // group, group)
    low_NG, high_NG = grouped_NGk.aminmax(dim=-1)
    if not (low_NG.isfinite().all() and high_NG.isfinite().all()):
        raise ConfigurationError("a weight holds NaN or infinity; train or convert the model again before quantising it")
    scale_NG = ((high_NG - low_NG) / (LEVELS - 1)).bfloat16().float()
    zero_NG = (low_NG + MIDDLE * scale_NG).bfloat16().float()
    return F.pad(torch.stack([scale_NG, zero_NG], dim=-1).transpose(0, 1), (0, 0, 0, -rows % TILE)).contiguous()


def round_to_grid(weight_NK: Tensor, scale_zero_GP2: Tensor) -> Tensor:
    """Codes (N, K), uint8: the nearest point of each group's grid."""
    rows, width = weight_NK.shape
    groups = scale_zero_GP2.shape[0]
    scale_NG1, zero_NG1 = (scale_zero_GP2[:, :rows, part].T.unsqueeze(-1) for part in (0, 1))
    step = torch.where(scale_NG1 > 0, scale_NG1, 1.0)
    codes = (weight_NK.detach().float().view(rows, groups, width // groups) - zero_NG1) / step
    return codes.round_().add_(MIDDLE).clamp_(0, LEVELS - 1).to(torch.uint8).view(rows, width)


def pack(codes_NK: Tensor) -> Tensor:
    """Codes (N, K) -> tiles (T, K, 32)."""
    codes_PK = F.pad(codes_NK, (0, 0, 0, -codes_NK.shape[0] % TILE))
    low, high = codes_PK.view(-1, 2, TILE // 2, codes_PK.shape[1]).unbind(1)
    return (low | (high << 4)).transpose(1, 2).contiguous()


def unpack(weight_TKb: Tensor) -> Tensor:
    """Tiles (T, K, 32) -> codes (P, K), uint8."""
    return torch.cat([weight_TKb & 15, weight_TKb >> 4], dim=-1).transpose(1, 2).flatten(0, 1)


def quantize_groups(weight_NK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Round to nearest: tiles (T, K, 32), and scales and zeros (G, P, 2) in the dtype of the weight; on "meta" only their shapes."""
    if weight_NK.is_meta:
        width, tiles = weight_NK.shape[1], -(-len(weight_NK) // TILE)
        packed = weight_NK.new_empty(tiles, width, TILE // 2, dtype=torch.uint8)
        return packed, weight_NK.new_empty(width // group, tiles * TILE, 2)
    scale_zero = choose_grid(weight_NK, group)
    return pack(round_to_grid(weight_NK, scale_zero)), scale_zero.to(weight_NK.dtype)


def dequantize(weight_TKb: Tensor, scale_zero_GP2: Tensor, dtype: torch.dtype) -> Tensor:
    """Tiles, scales and zeros -> weights (P, K) in `dtype`, computed in float32."""
    groups, rows = scale_zero_GP2.shape[:2]
    scale_PG1, zero_PG1 = scale_zero_GP2.float().transpose(0, 1).unsqueeze(-2).unbind(-1)
    grouped = unpack(weight_TKb).float().sub_(MIDDLE).view(rows, groups, -1)
    return grouped.mul_(scale_PG1).add_(zero_PG1).flatten(1).to(dtype)


def dequantize_and_multiply(
    x: Tensor, weight_TKb: Tensor, scale_zero_GP2: Tensor, rows: int, bias_N: Tensor | None = None, input_scale_K: Tensor | None = None
) -> Tensor:
    """(..., K) -> (..., N): the plain twin that every faster path is compared with."""
    x = x if input_scale_K is None else x * input_scale_K.to(x.dtype)
    return F.linear(x, dequantize(weight_TKb, scale_zero_GP2, x.dtype)[:rows], bias_N)


def multiply(
    x: Tensor,
    weight_TKb: Tensor,
    scale_zero_GP2: Tensor,
    rows: int,
    bias_N: Tensor | None = None,
    input_scale_K: Tensor | None = None,
    kernel_weight: Any = None,
) -> Tensor:
    """(..., K) -> (..., N) by the packed kernel where it serves, else a block of tiles at a time, with 8-bit activations where these serve.

    Args:
        kernel_weight: called without arguments where the kernel needs the weight in its own order; None: unpack instead.
    """
    x = x if input_scale_K is None else x * input_scale_K.to(x.dtype)
    x_MK = x.reshape(-1, x.shape[-1])
    if native.serves(x_MK, scale_zero_GP2):
        return native.int4_multiply(x_MK, weight_TKb, scale_zero_GP2, rows, bias_N).view(*x.shape[:-1], rows)
    if gpu.serves(x_MK):
        return gpu.int4_multiply(x_MK, weight_TKb, scale_zero_GP2, rows, bias_N).view(*x.shape[:-1], rows)
    if packed_kernel_serves(x_MK, scale_zero_GP2) and (kernel_reads_tiles() or kernel_weight is not None):
        weight = weight_TKb if kernel_reads_tiles() else kernel_weight()
        weight = weight.view(scale_zero_GP2.shape[1], -1)
        group = x_MK.shape[1] // scale_zero_GP2.shape[0]
        y_MP = torch._weight_int4pack_mm_for_cpu(x_MK, weight, group, scale_zero_GP2)
    elif w8a8.serves(x_MK, rows, bits=4):
        return multiply_w8a8(x_MK, weight_TKb, scale_zero_GP2, rows, bias_N).view(*x.shape[:-1], rows)
    else:
        y_MP = unpack_and_multiply(x_MK, weight_TKb, scale_zero_GP2)
    y = y_MP[:, :rows].reshape(*x.shape[:-1], rows)
    return y if bias_N is None else y + bias_N


def multiply_w8a8(x_MK: Tensor, weight_TKb: Tensor, scale_zero_GP2: Tensor, rows: int, bias_N: Tensor | None = None) -> Tensor:
    """(M, K) -> (M, N) with activations in 8 bits; weights are rounded again, to 8 bits with one scale per row, for this product alone.

    The second rounding adds little: its step is that of a row in 8 bits, an order of magnitude smaller than that of its groups in 4.
    """
    scale_GP, low_GP = _lines(scale_zero_GP2)
    step_P = torch.maximum(low_GP.abs(), (low_GP + (LEVELS - 1) * scale_GP).abs()).amax(dim=0).div_(largest_int8_weight())
    step_P.clamp_(min=torch.finfo(torch.float32).tiny)
    unpacked = _unpacked(weight_TKb, scale_GP / step_P, low_GP / step_P, torch.int8)
    return w8a8.multiply(x_MK, ((weight_Kn, step_P[first : first + weight_Kn.shape[1]]) for first, weight_Kn in unpacked), rows, bias_N)


def unpack_and_multiply(x_MK: Tensor, weight_TKb: Tensor, scale_zero_GP2: Tensor) -> Tensor:
    """A block of tiles at a time, so that the weights of a large layer are never whole in a wide dtype."""
    return torch.cat([x_MK @ weight_Kn for _, weight_Kn in _unpacked(weight_TKb, *_lines(scale_zero_GP2), x_MK.dtype)], dim=-1)


def _lines(scale_zero_GP2: Tensor) -> tuple[Tensor, Tensor]:
    """Each group's weights as a line through its codes: the scale, and the weight of code 0; (G, P) float32."""
    scale_GP, zero_GP = scale_zero_GP2.float().unbind(-1)
    return scale_GP, zero_GP - MIDDLE * scale_GP


def _unpacked(weight_TKb: Tensor, scale_GP: Tensor, low_GP: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Blocks of `code * scale + low` in `dtype`, transposed: (number of its first row, weight (K, n)); int8 is rounded to the nearest."""
    tiles, width, half = weight_TKb.shape
    groups = scale_GP.shape[0]
    scale_TG1j, low_TG1j = (line_GP.reshape(groups, tiles, 1, TILE).transpose(0, 1) for line_GP in (scale_GP, low_GP))
    block, part = (min(tiles, max(1, weights // (TILE * width))) for weights in (UNPACKED_WEIGHTS, FLOAT_WEIGHTS))
    values_TKj = torch.empty(part, width, TILE, device=weight_TKb.device)
    for first in range(0, tiles, block):
        last = min(first + block, tiles)
        weight_KTj = torch.empty(width, last - first, TILE, dtype=dtype, device=weight_TKb.device)
        for start in range(first, last, part):
            stop = min(start + part, last)
            codes, values = weight_TKb[start:stop], values_TKj[: stop - start]
            values[..., :half], values[..., half:] = codes & 15, codes >> 4
            grouped = values.view(stop - start, groups, -1, TILE)
            torch.addcmul(low_TG1j[start:stop], grouped, scale_TG1j[start:stop], out=grouped)
            weight_KTj[:, start - first : stop - first] = (values if dtype.is_floating_point else values.round_()).transpose(0, 1)
        yield first * TILE, weight_KTj.view(width, -1)


def packed_kernel_serves(x_MK: Tensor, scale_zero_GP2: Tensor) -> bool:
    """Can and should torch's kernel multiply these rows?"""
    return (
        HAS_PACKED_KERNEL
        and x_MK.device.type == "cpu"
        and 0 < x_MK.shape[0] <= PACKED_ROWS.get(x_MK.dtype, 0)
        and x_MK.dtype == scale_zero_GP2.dtype
        and x_MK.is_contiguous()
        and not (x_MK.requires_grad and torch.is_grad_enabled())  # the kernel has no backward pass
    )


@cache
def kernel_reads_tiles() -> bool:
    """Does the kernel of this processor want its weights as the tiles have them?"""
    codes = torch.arange(2 * TILE * GROUPS[0], dtype=torch.int32).view(2 * TILE, -1).mul(7) % LEVELS
    return torch.equal(in_kernel_order(codes).flatten(), pack(codes.to(torch.uint8)).flatten())


def in_kernel_order(codes_PK: Tensor) -> Tensor:
    """Codes (P, K) as this processor's kernel reads them: (P, K / 2) uint8."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_PK.to(torch.int32), 2)


class Int4Linear(nn.Module):
    """A linear layer with weights in four bits.

    Parameters, none of them trainable: `weight` uint8 (T, K, 32), `scale_zero` (G, P, 2) in the dtype that the model computes in, `bias`
    (N,) or `None`, `input_scale` (K,) or `None`. Gradients flow through it to what comes before.
    """

    def __init__(self, weight: Tensor, scale_zero: Tensor, rows: int, bias: Tensor | None = None, input_scale: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale_zero = nn.Parameter(scale_zero, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.input_scale = None if input_scale is None else nn.Parameter(input_scale.detach(), requires_grad=False)
        self.out_features = rows
        self._in_kernel_order: tuple[int, Tensor] | None = None

    @classmethod
    def from_float(cls, linear: nn.Linear, group: int, scaled: bool = False) -> Int4Linear:
        """The layer with rounded weights, on the same device; on "meta" only its shapes. `scaled`: with an `input_scale` of ones."""
        input_scale = torch.ones_like(linear.weight[0]) if scaled else None
        return cls(*quantize_groups(linear.weight, group), linear.out_features, linear.bias, input_scale)

    def to_float(self, dtype: torch.dtype) -> nn.Linear:
        """A plain layer in `dtype` with the rounded weights."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta", dtype=dtype)
        weight = dequantize(self.weight, self.scale_zero, torch.float32)[: self.out_features]
        if self.input_scale is not None:
            weight = weight * self.input_scale.float()
        linear.weight = nn.Parameter(weight.to(dtype))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().to(dtype))
        return linear

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N) in the dtype of `x`."""
        return multiply(x, self.weight, self.scale_zero, self.out_features, self.bias, self.input_scale, self.kernel_weight)

    def kernel_weight(self) -> Tensor:
        """The weight in this processor's own order, (P, K / 2), made once."""
        address = self.weight.data_ptr()
        if self._in_kernel_order is None or self._in_kernel_order[0] != address:
            self._in_kernel_order = (address, in_kernel_order(unpack(self.weight)))
        return self._in_kernel_order[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_in_kernel_order": None}

    def extra_repr(self) -> str:
        group = self.in_features // self.scale_zero.shape[0]
        return f"in_features={self.in_features}, out_features={self.out_features}, group={group}, bias={self.bias is not None}"


class Int4Embedding(nn.Module):
    """A table of rows in four bits; a tied output head uses the same two tensors.

    Parameters, not trainable: `weight` uint8 (T, D, 32) and `scale_zero` (G, P, 2), whose dtype is that of the result. `multiplier` is
    Gemma's factor on its embeddings, which the output head does not share.
    """

    def __init__(
        self,
        weight: Tensor,
        scale_zero: Tensor,
        rows: int,
        source: type[nn.Embedding] = nn.Embedding,
        padding_idx: int | None = None,
        multiplier: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale_zero = nn.Parameter(scale_zero, requires_grad=False)
        self.num_embeddings, self.source, self.padding_idx, self.multiplier = rows, source, padding_idx, multiplier

    @classmethod
    def from_float(cls, embedding: nn.Embedding, group: int) -> Int4Embedding:
        """The table with rounded rows, on the same device; on "meta" only its shapes."""
        multiplier = getattr(embedding, "scalar_embed_scale", None)
        tiles, scale_zero = quantize_groups(embedding.weight, group)
        return cls(tiles, scale_zero, embedding.num_embeddings, type(embedding), embedding.padding_idx, multiplier)

    def to_float(self, dtype: torch.dtype) -> nn.Embedding:
        """A plain table in `dtype`, of the class that it was made from, with the rounded rows."""
        rows = dequantize(self.weight, self.scale_zero, dtype)[: self.num_embeddings]
        return plain_embedding(self.source, rows.contiguous(), self.padding_idx, self.multiplier)

    @property
    def embedding_dim(self) -> int:
        return self.weight.shape[1]

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids (...) -> (..., D); reads the tiles of these tokens alone."""
        tile, row = input_ids // TILE, input_ids % TILE
        bytes_D = self.weight[tile, :, row % (TILE // 2)]
        codes_D = torch.where((row < TILE // 2).unsqueeze(-1), bytes_D & 15, bytes_D >> 4).float() - MIDDLE
        scale_G, zero_G = self.scale_zero[:, input_ids].float().movedim(0, -2).unbind(-1)
        rows = codes_D.unflatten(-1, (scale_G.shape[-1], -1)) * scale_G.unsqueeze(-1) + zero_G.unsqueeze(-1)
        rows = rows.flatten(-2).to(self.scale_zero.dtype)
        return rows if self.multiplier is None else rows * self.multiplier

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
