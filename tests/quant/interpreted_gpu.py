"""Run by `test_gpu.py` in a process where Triton interprets. It has no products of bfloat16, so that scales alone are of that dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salticid.quant import gpu, int4, int8, kernels
from salticid.quant.int4 import Int4Linear
from salticid.quant.int8 import Int8Linear
from salticid.quant.kernels import fuse

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
SHAPES = [(1, 64, 128), (3, 200, 384), (16, 70, 256)]


def assert_close(y: Tensor, expected: Tensor) -> None:
    assert ((y.float() - expected).abs().max() / expected.abs().max()).item() < TOLERANCE[y.dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [*SHAPES, (5, 640, 100)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_int8(rows: int, outputs: int, inputs: int, dtype: torch.dtype, has_bias: bool) -> None:
    x_MK, bias_N = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, dtype=dtype) if has_bias else None
    weight_NK, scale_N = int8.quantize_rows(torch.randn(outputs, inputs))
    expected = int8.dequantize_and_multiply(x_MK.float(), weight_NK, scale_N, None if bias_N is None else bias_N.float())
    assert_close(gpu.int8_multiply(x_MK, weight_NK, scale_N.bfloat16(), bias_N), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("group", int4.GROUPS)
def test_int4(rows: int, outputs: int, inputs: int, group: int, dtype: torch.dtype) -> None:
    x_MK, bias_N, input_scale_K = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs), torch.rand(inputs)
    tiles, scale_zero = int4.quantize_groups(torch.randn(outputs, inputs), group)
    scaled = (x_MK * input_scale_K.to(dtype)).float()
    expected = int4.dequantize_and_multiply(scaled, tiles, scale_zero, outputs, bias_N)
    assert_close(gpu.int4_multiply(x_MK, tiles, scale_zero.bfloat16(), outputs, bias_N, input_scale_K), expected)


def test_rows_apart() -> None:
    wide_MK = torch.randn(4, 256)
    layer = torch.nn.Linear(128, 96)
    weight_NK, scale_N = int8.quantize_rows(layer.weight)
    for x_MK in (wide_MK[:, 64:192], wide_MK[:, 64:192].T.contiguous().T):
        assert_close(gpu.int8_multiply(x_MK, weight_NK, scale_N), int8.dequantize_and_multiply(x_MK, weight_NK, scale_N))


def test_gradients_and_many_rows_go_another_way() -> None:
    assert gpu.serves(torch.ones(gpu.MOST_ROWS, 64))
    assert not gpu.serves(torch.ones(gpu.MOST_ROWS + 1, 64))
    assert not gpu.serves(torch.ones(0, 64))
    assert not gpu.serves(torch.ones(1, 64, requires_grad=True))


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_and_products_use_them(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROUNDS_FLOAT32", False)
    plain = torch.nn.Linear(128, 192)
    layer = Int8Linear.from_float(plain) if bits == 8 else Int4Linear.from_float(plain, 32)
    rounded, x_MK = layer.to_float(torch.float32), torch.randn(2, 128)
    name, used = f"int{bits}_multiply", []
    original = getattr(gpu, name)
    monkeypatch.setattr(gpu, name, lambda x, *rest: used.append(len(x)) or original(x, *rest))
    with torch.inference_mode():
        assert_close(layer(x_MK), rounded(x_MK))
        assert_close(fuse([layer])(x_MK), rounded(x_MK))
    assert used == [2, 2]
