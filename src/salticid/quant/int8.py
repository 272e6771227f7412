"""Weights in eight bits: rows of int8 with one scale each, and the two layers that compute with them.

Symmetric, per output channel: `weight[n] ~ int8[n] * scale[n]` with int8 in [-127, 127]; activations keep their dtype. Every scale is
a number that bfloat16 holds, so a model can change between float32 and bfloat16 without any loss.

Shape legend: M rows of activations, N output channels, K input channels, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salticid.errors import ConfigurationError
from salticid.quant import gpu, native, w8a8
from salticid.quant.processor import ARM, HAS_PACKED_BFLOAT16

# Rows up to which the packed kernel is used on a CPU, by dtype: it reads all weights again for every four rows, where other products cost
# little more for many rows than for few. A dtype without vector code is absent.
PACKED_ROWS: dict[torch.dtype, int] = {}
if HAS_PACKED_BFLOAT16 or ARM:
    PACKED_ROWS[torch.bfloat16] = 16
if ARM:
    PACKED_ROWS[torch.float32] = 1

LEVELS = 127
"""Steps from zero to the largest int8 that has a counterpart below zero."""

# Weights that are unpacked at a time: a bound on the memory that a product takes.
UNPACKED_WEIGHTS = 2**23

# On x86 the bfloat16 kernel loads weights and activations with instructions that need these alignments (bytes), and reads past the
# end of a row whose length is no multiple of 16: an address that does not fit ends the process.
WEIGHT_ALIGNMENT = 16
ACTIVATION_ALIGNMENT = 32
ROW_MULTIPLE = 16

HAS_PACKED_KERNEL = hasattr(torch, "_weight_int8pack_mm")


def quantize_rows(weight_NK: Tensor, levels: int = LEVELS) -> tuple[Tensor, Tensor]:
    """Round each row to int8, its largest weight to `levels` steps from zero.

    With the same levels, weights that came from int8 are rounded to themselves, and changes of less than half a step are lost, all of them:
    a model that was trained on from small weights needs other levels to keep what it has learned.

    Returns:
        int8 (N, K), and scales (N,) in the dtype of the weight. A row of zeros has scale 1. On "meta" only shapes.

    Raises:
        ConfigurationError: the weight holds NaN or infinity.
    """
    if weight_NK.is_meta:
        return weight_NK.new_empty(weight_NK.shape, dtype=torch.int8), weight_NK.new_empty(len(weight_NK))
    values_NK = weight_NK.detach().float()
    scale_N = (values_NK.abs().amax(dim=1) / levels).bfloat16().float()
    if not scale_N.isfinite().all():
        raise ConfigurationError("a weight holds NaN or infinity; train or convert the model again before quantising it")
    scale_N = torch.where(scale_N > 0, scale_N, 1.0)
    rounded_NK = (values_NK / scale_N.unsqueeze(1)).round_().clamp_(-LEVELS, LEVELS)
    return rounded_NK.to(torch.int8), scale_N.to(weight_NK.dtype)


def dequantize(weight_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 (N, K) and scales (N,) -> weights (N, K) in `dtype`, multiplied in float32."""
    return (weight_NK.float() * scale_N.float().unsqueeze(1)).to(dtype)


def dequantize_and_multiply(x: Tensor, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(..., K) -> (..., N): the plain twin that every faster path is compared with."""
    return F.linear(x, dequantize(weight_NK, scale_N, x.dtype), bias_N)


def unpack_and_multiply(x: Tensor, weight_NK: Tensor, scale_N: Tensor) -> Tensor:
    """The product first and the scales after it: one pass over the weights less, and int8 is exact in any float dtype.

    A block of rows at a time, so that the weights of a large layer are never whole in a wide dtype.
    """
    blocks = weight_NK.split(max(1, UNPACKED_WEIGHTS // weight_NK.shape[1]))
    return torch.cat([F.linear(x, block.to(x.dtype)) for block in blocks], dim=-1) * scale_N.to(x.dtype)


def multiply(x: Tensor, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(..., K) -> (..., N) in the dtype of `x`: by our own kernel, torch's packed one or in 8-bit activations where they serve, else
    unpacked."""
    x_MK = x.reshape(-1, x.shape[-1])
    if native.serves(x_MK, scale_N):
        return native.int8_multiply(x_MK, weight_NK, scale_N, bias_N).view(*x.shape[:-1], weight_NK.shape[0])
    if gpu.serves(x_MK):
        return gpu.int8_multiply(x_MK, weight_NK, scale_N, bias_N).view(*x.shape[:-1], weight_NK.shape[0])
    if _packed_kernel_serves(x_MK, weight_NK, scale_N):
        y = torch._weight_int8pack_mm(x_MK, weight_NK, scale_N).view(*x.shape[:-1], weight_NK.shape[0])
    elif w8a8.serves(x_MK, len(weight_NK), bits=8):
        return multiply_w8a8(x_MK, weight_NK, scale_N, bias_N).view(*x.shape[:-1], weight_NK.shape[0])
    elif x.dtype == torch.float16:
        # Sums of unscaled int8 products leave the range of float16.
        return dequantize_and_multiply(x, weight_NK, scale_N, bias_N)
    else:
        y = unpack_and_multiply(x, weight_NK, scale_N)
    return y if bias_N is None else y + bias_N


def multiply_w8a8(x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(M, K) -> (M, N) with activations in 8 bits; the weight is read where it lies."""
    parts = zip(weight_NK.split(w8a8.BLOCK), scale_N.float().split(w8a8.BLOCK), strict=True)
    return w8a8.multiply(x_MK, ((weight.t(), scale) for weight, scale in parts), len(weight_NK), bias_N)


def kernel_reads(weight_NK: Tensor) -> bool:
    """Can the packed kernel read this weight where it lies?"""
    aligned = torch.compiler.is_compiling() or (weight_NK.device.type == "cpu" and is_aligned(weight_NK, WEIGHT_ALIGNMENT))
    return HAS_PACKED_KERNEL and aligned and weight_NK.shape[1] % ROW_MULTIPLE == 0


def _packed_kernel_serves(x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor) -> bool:
    return (
        x_MK.device.type == "cpu"
        and 0 < x_MK.shape[0] <= PACKED_ROWS.get(x_MK.dtype, 0)
        and x_MK.dtype == scale_N.dtype
        and x_MK.is_contiguous()
        and not (x_MK.requires_grad and torch.is_grad_enabled())  # the kernel has no backward pass
        and (torch.compiler.is_compiling() or is_aligned(x_MK, ACTIVATION_ALIGNMENT))
        and kernel_reads(weight_NK)
    )


class Int8Linear(nn.Module):
    """A linear layer with int8 weights.

    Parameters, none of them trainable: `weight` int8 (N, K), `scale` (N,) in the dtype that the model computes in, `bias` (N,) or
    `None`. Gradients flow through it to what comes before.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def from_float(cls, linear: nn.Linear) -> Int8Linear:
        """The layer with rounded weights, on the same device; on "meta" only its shapes."""
        return cls(*quantize_rows(linear.weight), linear.bias)

    def to_float(self, dtype: torch.dtype) -> nn.Linear:
        """A plain layer in `dtype` with the rounded weights."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta", dtype=dtype)
        linear.weight = nn.Parameter(dequantize(self.weight, self.scale, dtype))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().to(dtype))
        return linear

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N) in the dtype of `x`."""
        return multiply(x, self.weight, self.scale, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(nn.Module):
    """A table of int8 rows; a tied output head uses the same two tensors.

    Parameters, not trainable: `weight` int8 (V, D) and `scale` (V,), whose dtype is that of the result. `multiplier` is Gemma's factor
    on its embeddings, which the output head does not share.
    """

    def __init__(self, weight: Tensor, scale: Tensor, source: type[nn.Embedding], padding_idx: int | None, multiplier: float | None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.source, self.padding_idx, self.multiplier = source, padding_idx, multiplier

    @classmethod
    def from_float(cls, embedding: nn.Embedding) -> Int8Embedding:
        """The table with rounded rows, on the same device; on "meta" only its shapes."""
        multiplier = getattr(embedding, "scalar_embed_scale", None)
        return cls(*quantize_rows(embedding.weight), type(embedding), embedding.padding_idx, multiplier)

    def to_float(self, dtype: torch.dtype) -> nn.Embedding:
        """A table of the original class in `dtype` with the rounded rows."""
        return plain_embedding(self.source, dequantize(self.weight, self.scale, dtype), self.padding_idx, self.multiplier)

    @property
    def num_embeddings(self) -> int:
        return self.weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        return self.weight.shape[1]

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids (...) -> (..., D)."""
        rows = F.embedding(input_ids, self.weight).to(self.scale.dtype) * self.scale[input_ids].unsqueeze(-1)
        return rows if self.multiplier is None else rows * self.multiplier

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def plain_embedding(source: type[nn.Embedding], rows_VD: Tensor, padding_idx: int | None, multiplier: float | None) -> nn.Embedding:
    """A table of class `source` around these rows; `multiplier` is Gemma's."""
    options: dict[str, Any] = {} if multiplier is None else {"embed_scale": multiplier}
    build: Any = source  # Gemma's takes one argument more
    with torch.device("meta"):
        embedding = build(*rows_VD.shape, padding_idx, **options)
    embedding.weight = nn.Parameter(rows_VD)
    if multiplier is not None:
        embedding.embed_scale = torch.tensor(multiplier, device=rows_VD.device)
    return embedding


def is_aligned(tensor: Tensor, alignment: int) -> bool:
    """Does the first element lie at a multiple of `alignment` bytes?"""
    return tensor.data_ptr() % alignment == 0
