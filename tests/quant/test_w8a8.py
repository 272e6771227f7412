"""8-bit activations: near the plain twin whatever the activations hold, and used only where they serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import salticid
from salticid.models.photos import read_photo
from salticid.quant import int4, int8, w8a8
from salticid.quant.processor import largest_int8_weight

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "cat.jpg"

pytestmark = [
    pytest.mark.skipif(largest_int8_weight() < 127, reason="this processor multiplies 8-bit integers slowly"),
    pytest.mark.usefixtures("torch_kernels"),
]


def activations(rows: int, width: int, outliers: tuple[int, ...] = ()) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    x[:, list(outliers)] *= 50
    return x


def weight(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(2)) / width**0.5


def in_int8(x: Tensor, weight_NK: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The product, and its plain twin in float32."""
    small, scale = int8.quantize_rows(weight_NK)
    return int8.multiply_w8a8(x, small, scale, bias), int8.dequantize_and_multiply(x.float(), small, scale, bias)


def in_int4(x: Tensor, weight_NK: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    small, rows = int4.quantize_groups(weight_NK, 32), len(weight_NK)
    return int4.multiply_w8a8(x, *small, rows, bias), int4.dequantize_and_multiply(x.float(), *small, rows, bias)


PRODUCTS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"int8": in_int8, "int4": in_int4}


def error(y: Tensor, twin: Tensor) -> float:
    return ((y.float() - twin).norm() / twin.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 64, 32), (3, 70, 96), (600, 130, 160), (17, 1, 2560), (16, 1100, 64)])
@pytest.mark.parametrize("product", PRODUCTS)
def test_it_is_near_the_plain_twin(product: str, rows: int, columns: int, width: int, dtype: torch.dtype) -> None:
    x, bias = activations(rows, width).to(dtype), torch.linspace(-1, 1, columns)
    y, twin = PRODUCTS[product](x, weight(columns, width), bias)
    assert y.dtype == dtype
    assert y.shape == (rows, columns)
    # A row of normal numbers reaches about 4, so a step is 0.03 and its error 0.01 of what the numbers are.
    assert error(y, twin) < 0.02


@pytest.mark.parametrize("product", PRODUCTS)
def test_channels_of_large_values_do_not_round_the_others_away(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = activations(64, 512, (3, 500)), weight(128, 512)
    # What the large channels add would hide what is lost of the others.
    weights[:, [3, 500]] /= 50
    assert error(*PRODUCTS[product](x, weights)) < 0.03
    monkeypatch.setattr(w8a8, "EXACT_CHANNELS", 1)
    assert error(*PRODUCTS[product](x, weights)) > 0.1


def test_each_token_has_a_scale_of_its_own() -> None:
    x = activations(32, 256)
    x[0] *= 1000
    y, twin = in_int8(x, weight(64, 256))
    assert max(error(*rows) for rows in zip(y, twin, strict=True)) < 0.02


def test_rows_and_weights_of_zeros_give_zeros() -> None:
    for product in PRODUCTS.values():
        y, _ = product(torch.zeros(20, 64), weight(64, 64))
        assert not y.any()
        y, _ = product(activations(20, 64), torch.zeros(64, 64))
        assert not y.any()


def test_the_second_rounding_of_four_bits_is_small() -> None:
    weights = weight(128, 512)
    # Rows of one number are rounded exactly.
    y, twin = in_int4(torch.eye(512), weights)
    assert 0 < error(y, twin) < 0.1 * error(twin, weights.T)


def test_weights_may_lie_at_any_address() -> None:
    x = activations(20, 96).bfloat16()
    small, scale = int8.quantize_rows(weight(70, 96))
    expected = int8.multiply_w8a8(x, small, scale)
    tiles, grid = int4.quantize_groups(weight(70, 96), 32)
    expected4 = int4.multiply_w8a8(x, tiles, grid, 70)
    for offset in (1, 8, 33):
        moved = torch.empty(small.numel() + offset, dtype=torch.int8)[offset:].view(small.shape).copy_(small)
        assert torch.equal(int8.multiply_w8a8(x, moved, scale), expected)
        moved = torch.empty(tiles.numel() + offset, dtype=torch.uint8)[offset:].view(tiles.shape).copy_(tiles)
        assert torch.equal(int4.multiply_w8a8(x, moved, grid, 70), expected4)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x = activations(40, 64)
    expected = [product(x, weight(300, 64))[0] for product in PRODUCTS.values()]
    monkeypatch.setattr(w8a8, "BLOCK", 7)
    monkeypatch.setattr(w8a8, "ROUNDED_AT_A_TIME", 1)
    monkeypatch.setattr(int4, "UNPACKED_WEIGHTS", 64 * 64 * 2)
    monkeypatch.setattr(int4, "FLOAT_WEIGHTS", 1)
    for product, whole in zip(PRODUCTS.values(), expected, strict=True):
        torch.testing.assert_close(product(x, weight(300, 64))[0], whole, rtol=1e-5, atol=1e-5)


CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "a prompt": ({}, True),
    "few rows": ({"rows": w8a8.LEAST_ROWS - 1}, False),
    "few outputs": ({"columns": w8a8.LEAST_SIDE - 1}, False),
    "few inputs": ({"width": w8a8.LEAST_SIDE - 1}, False),
    "float32": ({"dtype": torch.float32}, False),
    "float16": ({"dtype": torch.float16}, False),
    "gradient": ({"requires_grad": True}, False),
    "meta": ({"device": "meta"}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_where_it_serves(case: str) -> None:
    options, expected = CASES[case]
    options = {"rows": w8a8.LEAST_ROWS, "columns": w8a8.LEAST_SIDE, "width": w8a8.LEAST_SIDE, "dtype": torch.bfloat16} | options
    rows, columns, width = (options.pop(name) for name in ("rows", "columns", "width"))
    assert w8a8.serves(torch.zeros(rows, width, **options), columns, bits=8) == expected


@pytest.mark.parametrize("kind", [int8.Int8Linear, int4.Int4Linear])
def test_layers_use_it_for_prompts_without_losing_gradients(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w8a8, "LEAST_SIDE", 1)
    monkeypatch.setattr(int4, "PACKED_ROWS", {})
    linear = torch.nn.Linear(64, 70).bfloat16()
    layer = kind.from_float(linear, 32) if kind is int4.Int4Linear else kind.from_float(linear)
    x = activations(40, 64).bfloat16()
    plain = layer.to_float(torch.float32)(x.float())
    assert error(layer(x.view(2, 20, 64)).view(40, 70), plain) < 0.02
    calls: list[Tensor] = []
    monkeypatch.setattr(w8a8, "round_rows", lambda x: calls.append(x))
    with pytest.raises(AttributeError):
        layer(x)
    assert len(calls) == 1
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad is not None
    assert len(calls) == 1


@pytest.mark.slow
@torch.inference_mode()
def test_the_embedded_model_answers_a_photo_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """All products in 8-bit activations, though its own are too small for it, beside the same weights in float32."""

    def logits(vlm: salticid.VisionLanguage) -> Tensor:
        pixels = vlm.processor.image_processor(images=[photo], return_tensors="pt")["pixel_values"].to(vlm.model.dtype)
        words = vlm.processor.tokenizer("What is in the photo?", return_tensors="pt")["input_ids"]
        marks = torch.full((1, vlm.processor.image_tokens), vlm.model.config.image_token_id)
        return vlm.model(input_ids=torch.cat([marks, words], dim=1), pixel_values=pixels).logits[0].float()

    photo = read_photo(PHOTO)
    twin = logits(salticid.load("nano", precision="fp32"))
    eight = salticid.load("nano")
    monkeypatch.setattr(w8a8, "LEAST_SIDE", 1)
    agree = {}
    for channels in (w8a8.EXACT_CHANNELS, 0):
        monkeypatch.setattr(w8a8, "EXACT_CHANNELS", channels)
        y = logits(eight)
        agree[channels] = ((y[-1] - twin[-1]).norm() / twin[-1].norm()).item()
    assert agree[16] < 0.05 < agree[0]
