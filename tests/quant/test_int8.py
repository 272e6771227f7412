"""Int8 rows: what rounding loses, and that every way of multiplying gives what the plain twin gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from salticid.errors import ConfigurationError
from salticid.quant import int8
from salticid.quant.int8 import Int8Embedding, Int8Linear, dequantize, dequantize_and_multiply, quantize_rows

pytestmark = pytest.mark.usefixtures("torch_kernels")

Operations = Callable[[nn.Module, torch.Tensor], list[str]]
RunsPacked = Callable[[nn.Module, torch.Tensor], bool]


@pytest.fixture
def runs_packed(operations: Operations) -> RunsPacked:
    return lambda layer, x: "aten._weight_int8pack_mm.default" in operations(layer, x)


def linear(width: int = 64, out: int = 24, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias)


def shifted(tensor: torch.Tensor, elements: int) -> torch.Tensor:
    """The same values at an address `elements` further than an allocation's start."""
    storage = torch.empty(tensor.numel() + elements, dtype=tensor.dtype)
    view = storage[elements:].view(tensor.shape)
    return view.copy_(tensor)


def test_rounding_loses_half_a_step_per_row_whatever_other_rows_hold() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1000
    weight[5] = 0
    rounded, scale = quantize_rows(weight)
    assert rounded.dtype == torch.int8
    assert rounded.min() >= -127
    error = (dequantize(rounded, scale, torch.float32) - weight).abs()
    assert (error <= 0.51 * scale.unsqueeze(1)).all()
    assert (scale[[0, 1, 2, 4, 6, 7]] < 0.04).all()
    assert scale[5] == 1
    assert (rounded[5] == 0).all()


def test_scales_survive_bfloat16() -> None:
    layer = Int8Linear.from_float(linear())
    before = layer.scale.clone()
    assert torch.equal(layer.to(torch.bfloat16).to(torch.float32).scale, before)
    assert layer.weight.dtype == torch.int8


def test_rounded_weights_are_rounded_to_themselves() -> None:
    layer = Int8Linear.from_float(linear())
    again = Int8Linear.from_float(layer.to_float(torch.float32))
    assert torch.equal(again.weight, layer.weight)
    assert torch.equal(again.scale, layer.scale)
    assert torch.equal(again.bias, layer.bias)


def test_what_was_learned_on_from_small_weights_needs_other_levels() -> None:
    """Of a change by a third of a step nothing is left on the old grid, and nearly all of it, on average, on another."""
    torch.manual_seed(0)
    began = dequantize(*quantize_rows(torch.randn(64, 512)), torch.float32)
    scale = began.abs().amax(dim=1, keepdim=True) / 127
    change = scale * (torch.rand_like(began) - 0.5) * 0.6
    change[torch.arange(64), began.abs().argmax(dim=1)] = 0  # the grid itself stays

    def kept(levels: int) -> float:
        moved = dequantize(*quantize_rows(began + change, levels), torch.float32) - began
        return float((moved * change).sum() / change.square().sum())

    assert kept(127) == pytest.approx(0, abs=0.01)
    assert kept(123) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    weight = torch.ones(2, 16)
    weight[1, 2] = value
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        quantize_rows(weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64)])
@pytest.mark.parametrize(
    ("packed", "dtype", "tolerance"),
    [
        (True, torch.float32, 1e-6),
        (True, torch.bfloat16, 1e-2),
        (False, torch.float32, 1e-6),
        (False, torch.bfloat16, 1e-2),
        (False, torch.float16, 2e-3),
    ],
)
def test_both_paths_equal_the_plain_twin(
    packed: bool,
    dtype: torch.dtype,
    tolerance: float,
    shape: tuple[int, ...],
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
    runs_packed: RunsPacked,
) -> None:
    monkeypatch.setattr(int8, "PACKED_ROWS", {dtype: 100} if packed else {})
    layer = Int8Linear.from_float(linear(bias=bias)).to(dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert runs_packed(layer, x) == packed
    y, twin = (
        layer(x),
        dequantize_and_multiply(x.float(), layer.weight, layer.scale, layer.bias if layer.bias is None else layer.bias.float()),
    )
    assert y.dtype == dtype
    assert y.shape == (*shape[:-1], 24)
    torch.testing.assert_close(y.float(), twin, rtol=tolerance, atol=tolerance)


def test_decoding_in_bfloat16_takes_the_packed_kernel_and_long_prompts_do_not(runs_packed: RunsPacked) -> None:
    layer = Int8Linear.from_float(linear()).to(torch.bfloat16)
    rows = int8.PACKED_ROWS[torch.bfloat16]
    assert runs_packed(layer, torch.randn(rows, 64).bfloat16())
    assert not runs_packed(layer, torch.randn(rows + 1, 64).bfloat16())


# Each of these once ended the process, or has no backward pass, when it reached the kernel.
@pytest.mark.parametrize("case", ["width", "weight address", "activation address", "strides", "gradient", "dtypes differ", "no rows"])
def test_what_the_kernel_cannot_read_goes_another_way(case: str, runs_packed: RunsPacked) -> None:
    layer = Int8Linear.from_float(linear(width=24 if case == "width" else 64)).to(torch.bfloat16)
    x = torch.randn(1, layer.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert case == "width" or runs_packed(layer, x)
    if case == "weight address":
        layer.weight.data = shifted(layer.weight.data, 8)
    elif case == "activation address":
        x = shifted(x, 4)
    elif case == "strides":
        x = torch.randn(64, 3).bfloat16().T
    elif case == "gradient":
        x.requires_grad_()
    elif case == "dtypes differ":
        layer.to(torch.float32)
    elif case == "no rows":
        x = x[:0]
    assert not runs_packed(layer, x)
    twin = dequantize_and_multiply(x.float(), layer.weight, layer.scale, layer.bias.float())
    torch.testing.assert_close(layer(x).float(), twin, rtol=1e-2, atol=1e-2)


def test_gradients_reach_what_comes_before() -> None:
    layer = Int8Linear.from_float(linear())
    x = torch.randn(1, 64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, dequantize(layer.weight, layer.scale, torch.float32).sum(dim=0, keepdim=True))
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_large_sums_stay_in_the_range_of_float16() -> None:
    layer = Int8Linear(torch.full((1, 1024), 127, dtype=torch.int8), torch.tensor([2.0**-10]))
    assert layer(torch.ones(1, 1024, dtype=torch.float16)).item() == 127


def test_layer_compiles_without_a_break() -> None:
    layer = Int8Linear.from_float(linear())
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(1, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


def test_embedding_gives_rows_of_the_dequantised_table() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(10, 16, padding_idx=0)
    embedding = Int8Embedding.from_float(table)
    ids = torch.tensor([[0, 3], [9, 3]])
    rows = embedding(ids)
    torch.testing.assert_close(rows, embedding.to_float(torch.float32)(ids), rtol=0, atol=0)
    assert (rows - table(ids)).abs().max() < 0.02
    assert embedding.to(torch.bfloat16)(ids).dtype == torch.bfloat16
