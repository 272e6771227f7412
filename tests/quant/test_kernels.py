"""Products: what the layers give, one after the other, by the kernel that serves, with weights held once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salticid.errors import ConfigurationError
from salticid.quant import int4, int8, kernels, w8a8
from salticid.quant.int4 import Int4Linear
from salticid.quant.int8 import Int8Linear
from salticid.quant.kernels import SideBySide, can_fuse, fuse
from salticid.quant.processor import HAS_PACKED_BFLOAT16, largest_int8_weight

pytestmark = pytest.mark.usefixtures("torch_kernels", "exact_float32")

Make = Callable[[nn.Linear], nn.Module]
Operations = Callable[[Callable[[Tensor], Tensor], Tensor], list[str]]
KINDS: dict[str, Make] = {
    "float": lambda linear: linear,
    "int8": Int8Linear.from_float,
    "int4 32": lambda linear: Int4Linear.from_float(linear, 32),
    "int4 64": lambda linear: Int4Linear.from_float(linear, 64),
    "int4 128": lambda linear: Int4Linear.from_float(linear, 128),
    "int4 scaled": lambda linear: scaled(Int4Linear.from_float(linear, 32, scaled=True)),
}
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def scaled(layer: Int4Linear) -> Int4Linear:
    assert layer.input_scale is not None
    layer.input_scale.data = torch.linspace(0.5, 2, layer.in_features)
    return layer


def linears(*rows: int, width: int = 128, bias: bool = True) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(width, count, bias=bias) for count in rows]


def inputs(rows: int, width: int = 128) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


def twin(layers: list[Any], x: Tensor) -> Tensor:
    """Layer by layer with dequantised weights, in float32."""
    plain = [layer if isinstance(layer, nn.Linear) else layer.to_float(torch.float32) for layer in layers]
    return torch.cat([nn.functional.linear(x, each.weight.float(), None if each.bias is None else each.bias.float()) for each in plain], -1)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "bias"), [((100,), True), ((64, 128, 70), False), ((70, 64), True), ((1, 3), False)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_gives_what_the_layers_give(kind: str, sizes: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    layers: list[Any] = [KINDS[kind](linear).to(dtype) for linear in linears(*sizes, bias=bias)]
    product = fuse(layers)
    for rows in (0, 1, 2, 17, 600):
        x = inputs(rows).to(dtype)
        expected = twin(layers, x.float())
        y = product(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])
        after = torch.cat([layer(x) for layer in layers], dim=-1)
        torch.testing.assert_close(after.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_is_multiplied_where_it_lies(kind: str) -> None:
    layer: Any = KINDS[kind](linears(64)[0])
    before = layer.weight.data_ptr()
    fuse([layer])
    assert layer.weight.data_ptr() == before


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_several_layers_are_held_once(kind: str) -> None:
    layers: list[Any] = [KINDS[kind](linear) for linear in linears(64, 64, 70)]
    assert not isinstance(fuse(layers), SideBySide)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1


DIFFERENT: dict[str, Callable[[], list[Any]]] = {
    "kinds": lambda: [KINDS[kind](linear) for kind, linear in zip(("float", "int8", "int4 32"), linears(64, 64, 64), strict=True)],
    "groups": lambda: [KINDS[kind](linear) for kind, linear in zip(("int4 32", "int4 64"), linears(64, 64), strict=True)],
    "tiles that are not full": lambda: [KINDS["int4 32"](linear) for linear in linears(70, 64)],
    "input scales": lambda: [KINDS["int4 scaled"](linears(64)[0]), Int4Linear.from_float(linears(64)[0], 32, scaled=True)],
    "an input scale and none": lambda: [KINDS["int4 scaled"](linears(64)[0]), KINDS["int4 32"](linears(64)[0])],
    "biases": lambda: [KINDS["int8"](linears(64)[0]), KINDS["int8"](linears(64, bias=False)[0])],
}


@torch.inference_mode()
@pytest.mark.parametrize("case", DIFFERENT)
def test_layers_that_differ_stay_side_by_side(case: str) -> None:
    layers = DIFFERENT[case]()
    product = fuse(layers)
    assert isinstance(product, SideBySide)
    x = inputs(5)
    torch.testing.assert_close(product(x), twin(layers, x), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_fused() -> None:
    class Changed(nn.Linear):
        pass

    hooked = linears(64)[0]
    hooked.register_forward_hook(lambda *args: None)
    for layers, name in (([], "nothing"), ([Changed(64, 64)], "Changed"), ([hooked], "Linear"), ([nn.Embedding(4, 4)], "Embedding")):
        assert not can_fuse(layers)
        with pytest.raises(ConfigurationError, match=f"Linear, Int8Linear, Int4Linear without hooks, not of {name}"):
            fuse(layers)


@pytest.fixture
def operations(operations: Operations) -> Operations:
    """As the engine calls products."""
    return torch.inference_mode()(operations)


PACKED = {"int8": "aten._weight_int8pack_mm.default", "int4 64": "aten._weight_int4pack_mm_for_cpu.default"}


@pytest.mark.skipif(not HAS_PACKED_BFLOAT16, reason="no vector code for packed weights")
@pytest.mark.parametrize("kind", PACKED)
def test_one_row_is_one_operation(kind: str, operations: Operations) -> None:
    product = fuse([KINDS[kind](linears(64, bias=False)[0]).bfloat16()])
    product(inputs(1).bfloat16())  # a kernel with another order has its weights put into it once
    assert [name for name in operations(product, inputs(1).bfloat16()) if "view" not in name] == [PACKED[kind]]


@pytest.mark.skipif(not HAS_PACKED_BFLOAT16, reason="no vector code for packed weights")
@pytest.mark.parametrize("kind", PACKED)
def test_rows_choose_the_kernel(kind: str, monkeypatch: pytest.MonkeyPatch, operations: Operations) -> None:
    monkeypatch.setattr(w8a8, "LEAST_SIDE", 1)
    rows = {"int8": int8, "int4 64": int4}[kind].PACKED_ROWS[torch.bfloat16]
    product = fuse([KINDS[kind](linears(64)[0]).bfloat16()])
    assert PACKED[kind] in operations(product, inputs(rows).bfloat16())
    many = operations(product, inputs(rows + 1).bfloat16())
    assert PACKED[kind] not in many
    assert ("aten._int_mm.default" in many) == (largest_int8_weight() >= w8a8.NEEDED_WEIGHT[8 if kind == "int8" else 4])


@pytest.mark.skipif(not HAS_PACKED_BFLOAT16, reason="no vector code for packed weights")
@torch.inference_mode()
def test_activations_and_weights_at_odd_addresses(operations: Operations) -> None:
    layer: Any = Int8Linear.from_float(linears(64)[0]).bfloat16()
    x = inputs(2).bfloat16()
    expected = layer(x)
    product = fuse([layer])
    shifted = torch.empty(x.numel() + 4, dtype=x.dtype)[4:].view(x.shape).copy_(x)
    assert PACKED["int8"] in operations(product, shifted)
    for moved in (shifted, x.T.contiguous().T):
        assert torch.equal(product(moved), expected)
    layer.weight.data = torch.empty(layer.weight.numel() + 8, dtype=torch.int8)[8:].view(layer.weight.shape).copy_(layer.weight)
    product = fuse([layer])
    assert PACKED["int8"] not in operations(product, x)
    torch.testing.assert_close(product(x), expected, rtol=2e-2, atol=2e-2)


@torch.inference_mode()
def test_a_kernel_with_another_order_gets_weights_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer: Any = Int4Linear.from_float(linears(64)[0], 32).bfloat16()
    x = inputs(1).bfloat16()
    expected = fuse([layer])(x)
    monkeypatch.setattr(int4, "kernel_reads_tiles", lambda: False)
    assert torch.equal(fuse([layer])(x), expected)


@pytest.mark.skipif(not HAS_PACKED_BFLOAT16, reason="no vector code for packed weights")
@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 40, 200])
@pytest.mark.parametrize("kind", [*PACKED, "int4 scaled"])
def test_float32_is_rounded_inside_where_bfloat16_is_slow_outside(
    kind: str, rows: int, monkeypatch: pytest.MonkeyPatch, operations: Operations
) -> None:
    monkeypatch.setattr(kernels, "ROUNDS_FLOAT32", True)
    layer: Any = KINDS[kind](linears(100)[0])
    x = inputs(rows)
    name = next(packed for start, packed in PACKED.items() if kind[:4] == start[:4])
    product = fuse([layer])
    y = product(x)
    assert y.dtype == torch.float32
    error = (y - twin([layer], x)).norm() / y.norm()
    if name in operations(product, x):
        assert 1e-4 < error < 1e-2
    else:
        assert error < 1e-5
    monkeypatch.setattr(w8a8, "LEAST_SIDE", 1)
    if name not in operations(product, x):
        assert "aten._int_mm.default" in operations(product, x)
        assert (product(x) - twin([layer], x)).norm() < 2e-2 * y.norm()
