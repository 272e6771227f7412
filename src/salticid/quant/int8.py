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

# Rows up to which the packed kernel is used on a CPU; above them, or where a dtype is absent, weights are unpacked for one product.
# On x86 the kernel has vector code for bfloat16 alone, and float32 goes through a scalar loop. It reads all weights again for every
# four rows, while unpacking costs the same for any number of rows.
PACKED_ROWS: dict[torch.dtype, int] = {torch.bfloat16: 16, torch.float32: 1}

# On x86 the bfloat16 kernel loads weights and activations with instructions that need these alignments (bytes), and reads past the
# end of a row whose length is no multiple of 16: an address that does not fit ends the process.
WEIGHT_ALIGNMENT = 16
ACTIVATION_ALIGNMENT = 32
ROW_MULTIPLE = 16

HAS_PACKED_KERNEL = hasattr(torch.ops.aten, "_weight_int8pack_mm")


def quantize_rows(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8.

    Returns:
        int8 (N, K), and scales (N,) in the dtype of the weight. A row of zeros has scale 1.

    Raises:
        ConfigurationError: the weight holds NaN or infinity.
    """
    values_NK = weight_NK.detach().float()
    scale_N = (values_NK.abs().amax(dim=1) / 127).bfloat16().float()
    if not scale_N.is_meta and not scale_N.isfinite().all():
        raise ConfigurationError("a weight holds NaN or infinity; train or convert the model again before quantising it")
    scale_N = torch.where(scale_N > 0, scale_N, 1.0)
    rounded_NK = (values_NK / scale_N.unsqueeze(1)).round_().clamp_(-127, 127)
    return rounded_NK.to(torch.int8), scale_N.to(weight_NK.dtype)


def dequantize(weight_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 (N, K) and scales (N,) -> weights (N, K) in `dtype`, multiplied in float32."""
    return (weight_NK.float() * scale_N.float().unsqueeze(1)).to(dtype)


def dequantize_and_multiply(x: Tensor, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(..., K) -> (..., N): the plain twin that every faster path is compared with."""
    return F.linear(x, dequantize(weight_NK, scale_N, x.dtype), bias_N)


def _unpack_and_multiply(x: Tensor, weight_NK: Tensor, scale_N: Tensor) -> Tensor:
    """The product first and the scales after it: one pass over the weights less, and int8 is exact in any float dtype."""
    return F.linear(x, weight_NK.to(x.dtype)) * scale_N.to(x.dtype)


def multiply(x: Tensor, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(..., K) -> (..., N) in the dtype of `x`: by the packed kernel where it serves, else with unpacked weights."""
    x_MK = x.reshape(-1, x.shape[-1])
    if _packed_kernel_serves(x_MK, weight_NK, scale_N):
        y = torch.ops.aten._weight_int8pack_mm(x_MK, weight_NK, scale_N).view(*x.shape[:-1], weight_NK.shape[0])
    elif x.dtype == torch.float16:
        # Sums of unscaled int8 products leave the range of float16.
        return dequantize_and_multiply(x, weight_NK, scale_N, bias_N)
    else:
        y = _unpack_and_multiply(x, weight_NK, scale_N)
    return y if bias_N is None else y + bias_N


def _packed_kernel_serves(x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor) -> bool:
    rows, width = x_MK.shape
    return (
        HAS_PACKED_KERNEL
        and x_MK.device.type == "cpu"
        and 0 < rows <= PACKED_ROWS.get(x_MK.dtype, 0)
        and x_MK.dtype == scale_N.dtype
        and width % ROW_MULTIPLE == 0
        and x_MK.is_contiguous()
        and not (x_MK.requires_grad and torch.is_grad_enabled())  # the kernel has no backward pass
        and (torch.compiler.is_compiling() or (is_aligned(x_MK, ACTIVATION_ALIGNMENT) and is_aligned(weight_NK, WEIGHT_ALIGNMENT)))
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
        rows = self.weight[input_ids].to(self.scale.dtype) * self.scale[input_ids].unsqueeze(-1)
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
