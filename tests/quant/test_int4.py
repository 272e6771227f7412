"""Groups of four bits: what rounding loses, and that every way of multiplying gives what the plain twin gives."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

from salticid.errors import ConfigurationError
from salticid.quant import int4
from salticid.quant.int4 import (
    Int4Embedding,
    Int4Linear,
    choose_grid,
    dequantize,
    dequantize_and_multiply,
    in_kernel_order,
    kernel_reads_tiles,
    pack,
    quantize_groups,
    round_to_grid,
    unpack,
)

pytestmark = pytest.mark.usefixtures("torch_kernels")

Operations = Callable[[nn.Module, torch.Tensor], list[str]]
RunsPacked = Callable[[nn.Module, torch.Tensor], bool]


@pytest.fixture
def runs_packed(operations: Operations) -> RunsPacked:
    return lambda layer, x: "aten._weight_int4pack_mm_for_cpu.default" in operations(layer, x)


def linear(width: int = 128, out: int = 100, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias)


def twin(layer: Int4Linear, x: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return dequantize_and_multiply(x.float(), layer.weight, layer.scale_zero, layer.out_features, bias, layer.input_scale)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_rounding_loses_half_a_step_per_group_whatever_other_groups_hold(group: int) -> None:
    weight = torch.randn(70, 128, generator=torch.Generator().manual_seed(0)) + 0.5
    weight[3, :group] *= 1000
    weight[5] = 0.25
    tiles, scale_zero = quantize_groups(weight, group)
    assert tiles.dtype == torch.uint8
    assert tiles.shape == (2, 128, 32)
    assert scale_zero.shape == (128 // group, 128, 2)
    error = (dequantize(tiles, scale_zero, torch.float32)[:70] - weight).abs().view(70, -1, group)
    # bfloat16 rounds zero points too, so the ends of a group may be a little further away.
    step = scale_zero[:, :70, 0].T.unsqueeze(-1)
    ends = scale_zero[:, :70, 1].T.abs().unsqueeze(-1) / 256
    assert (error <= 0.56 * step + ends).all()
    assert (error[5] == 0).all()
    assert scale_zero[-1, 0, 0] < 1


def test_zero_points_serve_groups_that_are_not_around_zero() -> None:
    weight = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) + 3
    error = (dequantize(*quantize_groups(weight, 64), torch.float32) - weight).abs().max()
    assert error < 0.5 / 15 * 1.6


def test_codes_survive_packing() -> None:
    codes = torch.randint(0, 16, (130, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tiles = pack(codes)
    assert torch.equal(unpack(tiles)[:130], codes)
    assert (tiles[1, 7, 5] & 15, tiles[1, 7, 5] >> 4) == (codes[64 + 5, 7], codes[64 + 37, 7])
    assert not unpack(tiles)[130:].any()


def test_tiles_are_what_the_kernel_of_avx512_reads() -> None:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("another processor, another order")
    assert kernel_reads_tiles()


def test_grids_survive_bfloat16_and_rounded_weights_are_rounded_to_themselves() -> None:
    layer = Int4Linear.from_float(linear(), 64)
    assert torch.equal(deepcopy(layer).to(torch.bfloat16).to(torch.float32).scale_zero, layer.scale_zero)
    plain = layer.to_float(torch.float32)
    grid = layer.scale_zero
    assert torch.equal(pack(round_to_grid(plain.weight, grid)), layer.weight)
    assert torch.equal(layer.bias, plain.bias)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    weight = torch.ones(2, 64)
    weight[1, 2] = value
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        choose_grid(weight, 32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("shape", [(1, 128), (5, 128), (2, 3, 128)])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_both_paths_equal_the_plain_twin(
    packed: bool,
    dtype: torch.dtype,
    tolerance: float,
    shape: tuple[int, ...],
    scaled: bool,
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
    runs_packed: RunsPacked,
) -> None:
    monkeypatch.setattr(int4, "PACKED_ROWS", {dtype: 100} if packed else {})
    monkeypatch.setattr(int4, "UNPACKED_WEIGHTS", 1)
    layer = Int4Linear.from_float(linear(bias=bias), 32, scaled).to(dtype)
    if scaled:
        layer.input_scale.data = torch.linspace(0.5, 2, 128).to(dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert runs_packed(layer, x) == packed
    y = layer(x)
    assert y.dtype == dtype
    assert y.shape == (*shape[:-1], 100)
    torch.testing.assert_close(y.float(), twin(layer, x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_kernel_with_another_order_gets_the_weights_in_it(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Int4Linear.from_float(linear(), group).to(torch.bfloat16)
    x = torch.randn(1, 128).bfloat16()
    expected = layer(x)
    monkeypatch.setattr(int4, "kernel_reads_tiles", lambda: False)
    assert torch.equal(layer(x), expected)
    made = layer._in_kernel_order
    assert torch.equal(made[1], in_kernel_order(unpack(layer.weight)))
    layer(x)
    assert layer._in_kernel_order is made
    assert deepcopy(layer)._in_kernel_order is None
    layer.load_state_dict(Int4Linear.from_float(linear(bias=True), group).to(torch.bfloat16).state_dict())
    layer.weight.data = (layer.weight ^ 255).clone()
    assert not torch.equal(layer(x), expected)


@pytest.mark.parametrize("case", ["strides", "gradient", "dtypes differ", "no rows", "many rows"])
def test_what_the_kernel_cannot_read_goes_another_way(case: str, runs_packed: RunsPacked) -> None:
    layer = Int4Linear.from_float(linear(), 64).to(torch.bfloat16)
    x = torch.randn(1, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert runs_packed(layer, x)
    if case == "strides":
        x = torch.randn(128, 3).bfloat16().T
    elif case == "gradient":
        x.requires_grad_()
    elif case == "dtypes differ":
        layer.to(torch.float32)
        layer.bias.data = layer.bias.data.bfloat16()
    elif case == "no rows":
        x = x[:0]
    elif case == "many rows":
        x = torch.randn(int4.PACKED_ROWS[torch.bfloat16] + 1, 128).bfloat16()
    assert not runs_packed(layer, x)
    torch.testing.assert_close(layer(x).float(), twin(layer, x), rtol=2e-2, atol=2e-2)


def test_weights_may_lie_at_any_address(runs_packed: RunsPacked) -> None:
    layer = Int4Linear.from_float(linear(), 64).to(torch.bfloat16)
    x = torch.randn(1, 128).bfloat16()
    expected = layer(x)
    for offset in (1, 8, 33):
        storage = torch.empty(layer.weight.numel() + offset, dtype=torch.uint8)
        layer.weight.data = storage[offset:].view(layer.weight.shape).copy_(layer.weight)
        assert runs_packed(layer, x)
        assert torch.equal(layer(x), expected)


def test_gradients_reach_what_comes_before() -> None:
    layer = Int4Linear.from_float(linear(), 64, scaled=True)
    layer.input_scale.data += 1
    x = torch.randn(1, 128, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.to_float(torch.float32).weight.sum(dim=0, keepdim=True))
    assert not any(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("rows", [70, 64])
def test_embedding_gives_rows_of_the_dequantised_table(rows: int) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(rows, 64, padding_idx=0)
    embedding = Int4Embedding.from_float(table, 32)
    ids = torch.tensor([[0, 3, 31], [32, rows - 1, 63]])
    found = embedding(ids)
    torch.testing.assert_close(found, embedding.to_float(torch.float32)(ids), rtol=0, atol=0)
    assert (found - table(ids)).abs().max() < 0.3
    assert embedding.to(torch.bfloat16)(ids).dtype == torch.bfloat16
