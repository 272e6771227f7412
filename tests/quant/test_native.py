"""Our own kernels for few and many rows: equal to the plain twins but for the rounding of activations, and used where they can be."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from salticid.quant import int4, int8, native
from salticid.quant.int4 import Int4Linear
from salticid.quant.int8 import Int8Linear
from salticid.quant.kernels import choose_kernel, fuse
from salticid.quant.native import build
from salticid.quant.native.step import GELU_TANH, SILU

compiled = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")
# Up to 8 rows, or 4 with weights in 8 bits, nothing is unpacked, and blocks are of 32 inputs; then of 64, where groups allow it.
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 40, 513]


def rounded(x_MK: torch.Tensor, block: int) -> torch.Tensor:
    """What the kernels make of activations: blocks in 8 bits."""
    width = x_MK.shape[1]
    blocks = torch.nn.functional.pad(x_MK.float(), (0, -width % block)).unflatten(1, (-1, block))
    most = blocks.abs().amax(-1, keepdim=True)
    return (torch.where(most > 0, (blocks * (torch.tensor(127.0) / most)).round(), 0.0) * (most / 127)).flatten(1)[:, :width]


def activations(rows: int, width: int) -> torch.Tensor:
    """With one channel far larger than the others, as language models have them, and one row of zeros."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    x[:, 5] *= 40
    x[rows // 2 + 1 :] *= 0.01
    x[-1] *= float(rows == 1)
    return x.bfloat16()


def linear(rows: int, width: int, bias: bool) -> torch.nn.Linear:
    torch.manual_seed(rows)
    return torch.nn.Linear(width, rows, bias=bias)


def close(y: torch.Tensor, expected: torch.Tensor) -> None:
    """To what bfloat16 holds of each output, row by row."""
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-4 * float(expected.abs().max()) + 1e-6)


@compiled
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("outputs", "width"), [(64, 128), (100, 256), (1, 2176), (130, 4224)])
def test_four_bits(group: int, outputs: int, width: int) -> None:
    layer = Int4Linear.from_float(linear(outputs, width, bias=group != 64), group).bfloat16()
    bias = None if layer.bias is None else layer.bias.float()
    for x in (activations(rows, width) for rows in ROWS):
        y = native.int4_multiply(x, layer.weight, layer.scale_zero, outputs, layer.bias)
        block = 64 if len(x) > 8 and group > 32 else 32
        close(y, int4.dequantize_and_multiply(rounded(x, block), layer.weight, layer.scale_zero, outputs, bias))


@compiled
@pytest.mark.parametrize(("outputs", "width"), [(64, 128), (101, 96), (1, 33), (3, 2080), (130, 4200)])
def test_eight_bits(outputs: int, width: int) -> None:
    layer = Int8Linear.from_float(linear(outputs, width, bias=outputs != 64)).bfloat16()
    bias = None if layer.bias is None else layer.bias.float()
    for x in (activations(rows, width) for rows in ROWS):
        y = native.int8_multiply(x, layer.weight, layer.scale, layer.bias)
        block = 64 if len(x) > 4 and width % 64 == 0 else 32
        close(y, int8.dequantize_and_multiply(rounded(x, block), layer.weight, layer.scale.float(), bias))


@compiled
@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [2, 40])
def test_a_row_with_nan_stays_apart_from_the_others(strange: float, rows: int) -> None:
    x = activations(rows, 128)
    x[1, 77] = strange
    for layer in (Int4Linear.from_float(linear(70, 128, False), 32).bfloat16(), Int8Linear.from_float(linear(70, 128, False)).bfloat16()):
        y = layer(x)
        assert y[1].isnan().all()
        assert y[0].isfinite().all()


@compiled
def test_layers_and_products_take_them_and_agree() -> None:
    for layer in (Int4Linear.from_float(linear(70, 128, True), 32).bfloat16(), Int8Linear.from_float(linear(70, 128, True)).bfloat16()):
        for rows in (1, 30):
            x = activations(rows, 128)
            with torch.inference_mode():
                expected = (
                    native.int4_multiply(x, layer.weight, layer.scale_zero, 70, layer.bias)
                    if isinstance(layer, Int4Linear)
                    else native.int8_multiply(x, layer.weight, layer.scale, layer.bias)
                )
                assert torch.equal(layer(x), expected)
                assert torch.equal(fuse([layer])(x), expected)
                assert torch.equal(layer(x.view(1, rows, 128))[0], expected)
        assert layer(x[:0]).shape == (0, 70)
        assert layer.float()(x.float()).dtype == torch.float32


@compiled
def test_any_address_and_stride_will_do() -> None:
    layer = Int8Linear.from_float(linear(64, 96, True)).bfloat16()
    shifted = torch.empty(layer.weight.numel() + 1, dtype=torch.int8)[1:].view_as(layer.weight).copy_(layer.weight)
    x = activations(3, 96)
    expected = native.int8_multiply(x, layer.weight, layer.scale, layer.bias)
    assert torch.equal(native.int8_multiply(x, shifted, layer.scale, layer.bias), expected)
    assert torch.equal(native.int8_multiply(x.t().contiguous().t(), layer.weight, layer.scale, layer.bias), expected)


@compiled
def test_several_threads_at_a_time_do_not_disturb_each_other() -> None:
    layers = [Int4Linear.from_float(linear(256, 128 * (1 + index), False), 32).bfloat16() for index in range(4)]
    inputs = [activations(5 + 10 * index, layer.in_features) for index, layer in enumerate(layers)]
    expected = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert all(map(torch.equal, pool.map(lambda pair: pair[0](pair[1]), zip(layers, inputs, strict=True)), expected))


@compiled
def test_where_they_do_not_serve() -> None:
    scale = torch.ones(1, dtype=torch.bfloat16)
    x = torch.ones(2, 32, dtype=torch.bfloat16)
    assert native.serves(x, scale)
    assert not native.serves(x.float(), scale)
    assert not native.serves(x, scale.float())
    assert not native.serves(x[:0], scale)
    assert not native.serves(x.to("meta"), scale)
    assert not native.serves(x.clone().requires_grad_(), scale)


def test_the_choice_is_told() -> None:
    chosen = choose_kernel(4, torch.bfloat16, 1, (64, 64)), choose_kernel(8, torch.bfloat16, 1, (64, 64))
    assert (chosen == ("native", "native")) == native.available()


def test_they_can_be_turned_off() -> None:
    code = "from salticid.quant import native; print(native.why_not())"
    environment = {**os.environ, native.SWITCH: "0"}
    assert "SALTICID_NATIVE is 0" in subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout


@pytest.mark.usefixtures("torch_kernels")
def test_without_them_torch_serves() -> None:
    layer, x = Int8Linear.from_float(linear(64, 96, True)).bfloat16(), activations(3, 96)
    assert not native.serves(x, layer.scale)
    expected = int8.dequantize_and_multiply(x, layer.weight, layer.scale, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0.02, atol=0.02)


def test_no_compiler_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    assert "no-such-compiler" in str(build.build(tmp_path / "kernels.so"))
    monkeypatch.setenv("CC", "false")
    assert "false failed" in str(build.build(tmp_path / "kernels.so"))
    assert not list(tmp_path.iterdir())


@compiled
def test_what_is_installed_is_what_the_source_says(tmp_path: Path) -> None:
    assert build.build(tmp_path / "kernels.so") is None
    assert ctypes.CDLL(str(tmp_path / "kernels.so")).salticid_supported() == 1
    assert (tmp_path / "kernels.so").read_bytes() == build.LIBRARY.read_bytes(), (
        "compile it again: python src/salticid/quant/native/build.py"
    )


def test_a_damaged_library_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native.SWITCH, raising=False)
    (tmp_path / "kernels.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "kernels.so")
    native.why_not.cache_clear()
    native._open.cache_clear()
    try:
        assert "cannot be used" in str(native.why_not())
        monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
        native.why_not.cache_clear()
        assert "not compiled" in str(native.why_not())
    finally:
        native.why_not.cache_clear()
        native._open.cache_clear()


@compiled
@pytest.mark.parametrize(("kind", "plain"), [(SILU, F.silu), (GELU_TANH, partial(F.gelu, approximate="tanh"))])
@pytest.mark.parametrize(("rows", "width"), [(1, 7), (3, 64), (5, 100)])
def test_activations(kind: int, plain: Callable[[Tensor], Tensor], rows: int, width: int) -> None:
    both_MF = torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(0)).mul(4).bfloat16()
    both_MF[0, :4] = torch.tensor([0.0, -300.0, 300.0, torch.nan])
    x_MF, up_MF = both_MF.chunk(2, -1)
    assert_close(native.activate(x_MF, kind).float(), plain(x_MF.float()), rtol=2**-7, atol=1e-6, equal_nan=True)
    assert_close(native.activate(x_MF, kind, up_MF).float(), plain(x_MF.float()) * up_MF.float(), rtol=2**-7, atol=1e-6, equal_nan=True)
    assert_close(native.activate(x_MF.T.contiguous().T, kind, up_MF), native.activate(x_MF, kind, up_MF), equal_nan=True)


def test_activations_in_float32_and_with_gradients_are_torchs() -> None:
    assert not native.activates(torch.ones(2, 4))
    assert not native.activates(torch.ones(2, 4, dtype=torch.bfloat16, requires_grad=True))
