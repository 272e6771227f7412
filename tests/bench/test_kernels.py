"""Kernels: every one computes the product it is timed on, and what is marked as used is used."""

from __future__ import annotations

import pytest
import torch

from salticid.bench import kernels
from salticid.bench.kernels import KERNELS, kernels_of, shapes_of, time_kernels
from salticid.bench.report import kernel_table, kernel_values
from salticid.bench.subject import Subject
from salticid.errors import InputError
from salticid.quant import w8a8
from salticid.quant.processor import largest_int8_weight


class Clock:
    """Every look at it is a second later."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(autouse=True)
def one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "COLD", 1)


def test_matrices_of_a_decoder() -> None:
    assert shapes_of(Subject(shape="phi-2").config()) == [(2560, 2560), (10240, 2560), (2560, 10240), (51200, 2560)]


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_kernels_compute_the_same(precision: str) -> None:
    # Ones in 8 bits, and in 4 bits a code one above the middle of a grid with scale and zero of one.
    weight = {"int8": 1.0, "int4": 2.0}[precision]
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.float().sum(dim=1, keepdim=True) * weight
    for build in kernels_of(precision).values():
        y = build((70, 128), torch.bfloat16)(x)[:, :70].float()
        assert (y - expected).norm() < 0.02 * expected.norm() * 70**0.5


@pytest.mark.parametrize("precision", KERNELS)
def test_every_kernel_is_timed_and_one_is_used(precision: str) -> None:
    times = time_kernels((64, 128), precision, rows=20, rounds=4, clock=Clock())
    assert [time.kernel for time in times] == list(kernels_of(precision))
    assert sum(time.decodes for time in times) == sum(time.prompts for time in times) == 1
    assert all(time.decode.median == time.prompt.median == 1 for time in times)
    assert times[0].weights_per_second == 64 * 128
    assert times[0].operations_per_second == 2 * 20 * 64 * 128
    bytes_read = 64 * 128 * {"fp32": 4, "bf16": 2, "int8": 1, "int4": 0.5}[precision]
    assert kernel_values(times, bandwidth=2 * bytes_read)[0]["bandwidth_share"] == 0.5
    assert "| 50% |" in kernel_table(times, bandwidth=2 * bytes_read)


@pytest.mark.skipif(largest_int8_weight() < 127, reason="this processor multiplies 8-bit integers slowly")
@pytest.mark.usefixtures("torch_kernels")
def test_size_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(rows: int) -> str:
        return next(time.kernel for time in time_kernels((64, 128), "int8", rows, 1, Clock()) if time.prompts)

    assert used(200) == "unpacked"
    monkeypatch.setattr(w8a8, "LEAST_SIDE", 64)
    assert used(200) == "8-bit activations"


@pytest.mark.usefixtures("torch_kernels")
def test_kernels_that_would_be_wrong_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for largest, expected in ((127, (3, 3)), (64, (2, 3)), (0, (2, 2))):
        monkeypatch.setattr(kernels, "largest_int8_weight", lambda largest=largest: largest)
        assert tuple(len(kernels_of(precision)) for precision in ("int8", "int4")) == expected


def test_refusals() -> None:
    with pytest.raises(InputError, match="needs 2 rows and 1 round, not 1 and 20"):
        time_kernels((64, 128), "fp32", rows=1)
