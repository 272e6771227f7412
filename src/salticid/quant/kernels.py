"""Matrix products of the engine: layers that read the same input become one product, whose kernel is chosen by rows and processor.

A product decides once what does not depend on its input, so that a step of decoding, which calls a hundred of them, spends its time in
kernels. For inference: small weights pass no gradient on. What each kernel computes is in `int8`, `int4` and `w8a8`.

Shape legend: M rows of activations, N output channels, P the same filled up, K input channels, T tiles, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salticid.errors import ConfigurationError
from salticid.quant import gpu, int4, int8, native, w8a8
from salticid.quant.int4 import Int4Linear
from salticid.quant.int8 import Int8Linear
from salticid.quant.join import join
from salticid.quant.native.step import Kept
from salticid.quant.native.step import Product as NativeProduct
from salticid.quant.processor import ROUNDS_FLOAT32


class Product(Protocol):
    """(M, K) -> (M, N) in the dtype of the input, which is that of the model."""

    def __call__(self, x_MK: Tensor) -> Tensor: ...


class SmallProduct(Product, Protocol):
    """With weights in 8 or 4 bits."""

    packed_rows: int  # rows up to which the packed kernel is used; 0 where it cannot be

    def packed(self, x_MK: Tensor) -> Tensor: ...

    def w8a8(self, x_MK: Tensor) -> Tensor: ...


class FloatProduct:
    """Weights (N, K) in any float dtype."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None):
        self._weight_NK, self._bias_N = weight_NK, bias_N

    def __call__(self, x_MK: Tensor) -> Tensor:
        return F.linear(x_MK, self._weight_NK, self._bias_N)


class Int8Product:
    """Weights int8 (N, K), scales (N,) in the dtype of the model."""

    def __init__(self, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None):
        self._weight_NK, self._scale_N, self._bias_N = weight_NK, scale_N, bias_N
        self._is_native = _is_native(scale_N)
        self._gpu_rows = gpu.most_rows(scale_N.device)
        self.packed_rows = int8.PACKED_ROWS.get(scale_N.dtype, 0) if int8.kernel_reads(weight_NK) else 0

    def __call__(self, x_MK: Tensor) -> Tensor:
        if self._is_native and x_MK.shape[0] > 0:
            return native.int8_multiply(x_MK, self._weight_NK, self._scale_N, self._bias_N)
        if 0 < x_MK.shape[0] <= self._gpu_rows:
            return gpu.int8_multiply(x_MK, self._weight_NK, self._scale_N, self._bias_N)
        if 0 < x_MK.shape[0] <= self.packed_rows:
            return self.packed(x_MK)
        return int8.multiply(x_MK, self._weight_NK, self._scale_N, self._bias_N)

    def native(self, kept: Kept) -> NativeProduct | None:
        """As `native.step` reads it; `None` where our own kernels do not serve."""
        if not self._is_native:
            return None
        weight, scale, bias = map(kept.address, (self._weight_NK, self._scale_N, self._bias_N), (None, torch.bfloat16, torch.bfloat16))
        return NativeProduct(weight, scale, bias, None, 8, self._weight_NK.shape[1], len(self._weight_NK), 0, 0)

    def packed(self, x_MK: Tensor) -> Tensor:
        if not (x_MK.is_contiguous() and int8.is_aligned(x_MK, int8.ACTIVATION_ALIGNMENT)):
            x_MK = x_MK.clone(memory_format=torch.contiguous_format)
        y_MN = torch._weight_int8pack_mm(x_MK, self._weight_NK, self._scale_N)
        return y_MN if self._bias_N is None else y_MN.add_(self._bias_N)

    def w8a8(self, x_MK: Tensor) -> Tensor:
        return int8.multiply_w8a8(x_MK, self._weight_NK, self._scale_N, self._bias_N)


class Int4Product:
    """Weights uint8 (T, K, 32), scales and zeros (G, P, 2) in the dtype of the model, of which the first `rows` outputs are wanted.

    `kernel_weight` gives the weight in the order of this processor's kernel, where that differs from the tiles.
    """

    def __init__(
        self,
        weight_TKb: Tensor,
        scale_zero_GP2: Tensor,
        rows: int,
        bias_N: Tensor | None,
        input_scale_K: Tensor | None,
        kernel_weight: Callable[[], Tensor],
    ):
        self._weight_TKb, self._scale_zero_GP2, self._rows = weight_TKb, scale_zero_GP2, rows
        self._bias_N, self._kernel_weight = bias_N, kernel_weight
        self._input_scale_K = None if input_scale_K is None else input_scale_K.to(scale_zero_GP2.dtype)
        self._group = weight_TKb.shape[1] // scale_zero_GP2.shape[0]
        self._filled = scale_zero_GP2.shape[1] != rows
        self._is_native = _is_native(scale_zero_GP2)
        self._gpu_rows = gpu.most_rows(scale_zero_GP2.device)
        on_processor = int4.HAS_PACKED_KERNEL and weight_TKb.device.type == "cpu"
        self.packed_rows = int4.PACKED_ROWS.get(scale_zero_GP2.dtype, 0) if on_processor else 0
        self._as_kernel_reads = weight_TKb.view(scale_zero_GP2.shape[1], -1) if self.packed_rows and int4.kernel_reads_tiles() else None

    def __call__(self, x_MK: Tensor) -> Tensor:
        if self._is_native and x_MK.shape[0] > 0:
            x_MK = x_MK if self._input_scale_K is None else x_MK * self._input_scale_K
            return native.int4_multiply(x_MK, self._weight_TKb, self._scale_zero_GP2, self._rows, self._bias_N)
        if 0 < x_MK.shape[0] <= self._gpu_rows:
            return gpu.int4_multiply(x_MK, self._weight_TKb, self._scale_zero_GP2, self._rows, self._bias_N, self._input_scale_K)
        if 0 < x_MK.shape[0] <= self.packed_rows:
            return self.packed(x_MK)
        return int4.multiply(x_MK, self._weight_TKb, self._scale_zero_GP2, self._rows, self._bias_N, self._input_scale_K)

    def native(self, kept: Kept) -> NativeProduct | None:
        """As `native.step` reads it; `None` where our own kernels do not serve."""
        if not self._is_native:
            return None
        weight, lines = kept.address(self._weight_TKb), kept.address(self._scale_zero_GP2)
        bias, input_scale = kept.address(self._bias_N, torch.bfloat16), kept.address(self._input_scale_K, torch.bfloat16)
        width, filled = self._weight_TKb.shape[1], self._scale_zero_GP2.shape[1]
        return NativeProduct(weight, lines, bias, input_scale, 4, width, self._rows, filled, self._group)

    def packed(self, x_MK: Tensor) -> Tensor:
        x_MK = x_MK.contiguous() if self._input_scale_K is None else x_MK * self._input_scale_K
        weight = self._kernel_weight() if self._as_kernel_reads is None else self._as_kernel_reads
        y_MN = torch._weight_int4pack_mm_for_cpu(x_MK, weight, self._group, self._scale_zero_GP2)
        y_MN = y_MN[:, : self._rows] if self._filled else y_MN
        return y_MN if self._bias_N is None else y_MN.add_(self._bias_N)

    def w8a8(self, x_MK: Tensor) -> Tensor:
        x_MK = x_MK if self._input_scale_K is None else x_MK * self._input_scale_K
        return int4.multiply_w8a8(x_MK, self._weight_TKb, self._scale_zero_GP2, self._rows, self._bias_N)


class SideBySide:
    """Products of the same input, their outputs one after the other."""

    def __init__(self, products: Sequence[Callable[[Tensor], Tensor]]):
        self.products = products

    def __call__(self, x_MK: Tensor) -> Tensor:
        return torch.cat([product(x_MK) for product in self.products], dim=-1)


class Rounding:
    """float32 outside, what the kernels of small weights are fast in inside; see `processor.ROUNDS_FLOAT32`.

    `small` is a product in bfloat16, and `exact` the same in float32.
    """

    def __init__(self, small: SmallProduct, exact: Product, columns: int, bits: int):
        self._small, self._exact, self._columns, self._bits = small, exact, columns, bits

    def __call__(self, x_MK: Tensor) -> Tensor:
        if 0 < x_MK.shape[0] <= self._small.packed_rows:
            return self._small.packed(x_MK.bfloat16()).float()
        if w8a8.pays(x_MK.shape[0], (self._columns, x_MK.shape[1]), self._bits):
            return self._small.w8a8(x_MK)
        return self._exact(x_MK)


def can_fuse(layers: Sequence[nn.Module]) -> bool:
    """Does `fuse` take these? Subclasses, and layers with hooks, compute something else than their weights say."""
    return bool(layers) and all(type(layer) in _PRODUCTS and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers)


def fuse(layers: Sequence[nn.Module]) -> Product:
    """The outputs of layers that read the same input, one after the other, for inference.

    A single layer is multiplied where its weights lie. The weights of several move into one tensor, see `quant.join`; layers that cannot be
    joined are multiplied one by one. Made anew when a layer changes its device, dtype or weights.

    Raises:
        ConfigurationError: a layer of another class, or with hooks.
    """
    if not can_fuse(layers):
        names = ", ".join(dict.fromkeys(type(layer).__name__ for layer in layers)) or "nothing"
        raise ConfigurationError(f"a product is made of {', '.join(kind.__name__ for kind in _PRODUCTS)} without hooks, not of {names}")
    joined = layers[0] if len(layers) == 1 else join(layers)
    if joined is None:
        return SideBySide([fuse([layer]) for layer in layers])
    return _PRODUCTS[type(joined)](joined)


def _float_product(layer: Any) -> Product:
    return FloatProduct(layer.weight.detach(), _detached(layer.bias))


def _int8_product(layer: Any) -> Product:
    return int8_product(layer.weight.detach(), layer.scale.detach(), _detached(layer.bias))


def _int4_product(layer: Any) -> Product:
    bias_N, input_scale_K = _detached(layer.bias), _detached(layer.input_scale)
    return int4_product(layer.weight.detach(), layer.scale_zero.detach(), layer.out_features, bias_N, input_scale_K, layer.kernel_weight)


_PRODUCTS: dict[type[nn.Module], Callable[[Any], Product]] = {
    nn.Linear: _float_product,
    Int8Linear: _int8_product,
    Int4Linear: _int4_product,
}


def int8_product(weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None) -> Product:
    """The product with these tensors; see `Int8Product`."""
    product = Int8Product(weight_NK, scale_N, bias_N)
    if not _rounds(scale_N):
        return product
    return Rounding(Int8Product(weight_NK, scale_N.bfloat16(), bias_N), product, len(weight_NK), bits=8)


def int4_product(weight_TKb: Tensor, scale_zero_GP2: Tensor, rows: int, *options: Any) -> Product:
    """The product with these tensors; see `Int4Product`."""
    product = Int4Product(weight_TKb, scale_zero_GP2, rows, *options)
    if not _rounds(scale_zero_GP2):
        return product
    return Rounding(Int4Product(weight_TKb, scale_zero_GP2.bfloat16(), rows, *options), product, rows, bits=4)


def _is_native(scale: Tensor) -> bool:
    """Do our own kernels multiply in a model of this dtype?"""
    return scale.dtype == torch.bfloat16 and scale.device.type == "cpu" and native.available()


def _rounds(scale: Tensor) -> bool:
    return ROUNDS_FLOAT32 and scale.dtype == torch.float32 and scale.device.type == "cpu"


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def choose_kernel(bits: int, dtype: torch.dtype, rows: int, shape: tuple[int, int]) -> str:
    """What multiplies so many rows with a weight of that shape (N, K) on this processor, in a model that computes in `dtype`.

    Returns:
        "native", "packed", "8-bit activations" or "unpacked".
    """
    inside = dtype_inside(dtype)
    if inside == torch.bfloat16 and native.available():
        return "native"
    if rows <= {8: int8.PACKED_ROWS, 4: int4.PACKED_ROWS}[bits].get(inside, 0):
        return "packed"
    return "8-bit activations" if inside == torch.bfloat16 and w8a8.pays(rows, shape, bits) else "unpacked"


def dtype_inside(dtype: torch.dtype) -> torch.dtype:
    """What packed kernels compute in where the model computes in `dtype`."""
    return torch.bfloat16 if dtype == torch.float32 and ROUNDS_FLOAT32 else dtype
