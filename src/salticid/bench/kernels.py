"""Single matrix products: what each kernel does for one row, where memory is the limit, and for a prompt, where arithmetic is.

N output channels, K input channels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from salticid.bench.speed import Clock, Spread
from salticid.bench.subject import BITS, compute_dtype
from salticid.errors import InputError
from salticid.models import VisionLanguageConfig
from salticid.quant import int4, int8, native
from salticid.quant.kernels import choose_kernel, dtype_inside
from salticid.quant.plan import DEFAULT_GROUP
from salticid.quant.processor import largest_int8_weight
from salticid.quant.w8a8 import NEEDED_WEIGHT

# So many bytes of weights, as many copies as that takes, are read in turn: more than caches hold, as in a model.
COLD = 2**27

Call = Callable[[Tensor], Tensor]
Build = Callable[[tuple[int, int], torch.dtype], Call]


@dataclass(frozen=True)
class KernelTime:
    """Seconds of one product by one kernel; `decode` of one row, `prompt` of many. The last two: does the engine use it for these?"""

    precision: str
    kernel: str
    shape: tuple[int, int]
    rows: int
    decode: Spread
    prompt: Spread
    decodes: bool
    prompts: bool

    @property
    def weights_per_second(self) -> float:
        """While decoding."""
        return math.prod(self.shape) / self.decode.median

    @property
    def bytes_per_second(self) -> float:
        """Of weights read while decoding, scales left out."""
        return self.weights_per_second * BYTES[self.precision]

    @property
    def operations_per_second(self) -> float:
        """Multiplications and additions for the prompt."""
        return 2 * self.rows * math.prod(self.shape) / self.prompt.median


BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 0.5}


def shapes_of(config: VisionLanguageConfig) -> list[tuple[int, int]]:
    """(N, K) of the large matrices of a decoder: attention, the two or three of the feed-forward network, and the output head."""
    text = config.text_config
    width, ffn, words = text.hidden_size, text.intermediate_size, text.vocab_size
    return list(dict.fromkeys([(width, width), (ffn, width), (width, ffn), (words, width)]))


@torch.inference_mode()
def time_kernels(
    shape: tuple[int, int], precision: str, rows: int = 600, rounds: int = 20, clock: Clock = time.perf_counter
) -> list[KernelTime]:
    """Every kernel that this processor has for weights of that shape and precision, one after the other.

    Args:
        rounds: for one row; a quarter of them for the prompt.

    Raises:
        InputError: fewer than two rows or no round.
    """
    if rows < 2 or rounds < 1:
        raise InputError(f"a measurement needs 2 rows and 1 round, not {rows} and {rounds}")
    dtype, weights = compute_dtype(precision), math.prod(shape)
    generator = torch.Generator().manual_seed(0)
    row, prompt = (torch.randn(count, shape[1], generator=generator) for count in (1, rows))
    copies = max(1, math.ceil(COLD / (weights * BYTES[precision])))
    used = [choose_kernel(BITS[precision], dtype, count, shape) if precision in BITS else "plain" for count in (1, rows)]
    times = []
    for kernel, build in kernels_of(precision).items():
        computed_in = dtype_inside(dtype) if kernel == "packed" else dtype
        calls = [build(shape, computed_in) for _ in range(copies)]
        decode = _time(calls, row.to(computed_in), rounds, clock)
        many = _time(calls[:2], prompt.to(computed_in), max(1, rounds // 4), clock)
        times.append(KernelTime(precision, kernel, shape, rows, decode, many, kernel == used[0], kernel == used[1]))
    return times


def kernels_of(precision: str) -> dict[str, Build]:
    """By name; 8-bit activations only where the processor adds such products up exactly, and our own only where they were compiled."""
    exact = precision in BITS and largest_int8_weight() >= NEEDED_WEIGHT[BITS[precision]]
    lacking = {name for name, there in (("8-bit activations", exact), ("native", native.available())) if not there}
    return {name: build for name, build in KERNELS[precision].items() if name not in lacking}


def _time(calls: list[Call], x: Tensor, rounds: int, clock: Clock) -> Spread:
    """Seconds per call, all calls in turn in every round, after one round to warm up."""
    seconds = []
    for round_ in range(rounds + 1):
        start = clock()
        for call in calls:
            call(x)
        if round_:
            seconds.append((clock() - start) / len(calls))
    return Spread.of(seconds)


def _plain(shape: tuple[int, int], dtype: torch.dtype) -> Call:
    return partial(F.linear, weight=torch.ones(shape, dtype=dtype))


def _eight(product: Callable[..., Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Call:
    weight_NK, scale_N = torch.ones(shape, dtype=torch.int8), torch.ones(shape[0], dtype=dtype)
    return lambda x: product(x, weight_NK, scale_N)


def _four(product: Callable[..., Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Call:
    rows, width = shape
    tiles = -(-rows // int4.TILE)
    weight_TKb = torch.full((tiles, width, int4.TILE // 2), 0x99, dtype=torch.uint8)
    scale_zero_GP2 = torch.ones(max(1, width // DEFAULT_GROUP), tiles * int4.TILE, 2, dtype=dtype)
    return lambda x: product(x, weight_TKb, scale_zero_GP2, rows)


def _eight_packed(x: Tensor, weight_NK: Tensor, scale_N: Tensor) -> Tensor:
    return torch._weight_int8pack_mm(x, weight_NK, scale_N)


def _four_packed(x: Tensor, weight_TKb: Tensor, scale_zero_GP2: Tensor, rows: int) -> Tensor:
    group = x.shape[1] // scale_zero_GP2.shape[0]
    return torch._weight_int4pack_mm_for_cpu(x, weight_TKb.view(scale_zero_GP2.shape[1], -1), group, scale_zero_GP2)


def _four_unpacked(x: Tensor, weight_TKb: Tensor, scale_zero_GP2: Tensor, rows: int) -> Tensor:
    return int4.unpack_and_multiply(x, weight_TKb, scale_zero_GP2)


# "packed" is timed on weights of ones, which every order of the kernel reads alike.
KERNELS: dict[str, dict[str, Build]] = {
    "fp32": {"plain": _plain},
    "bf16": {"plain": _plain},
    "int8": {
        "native": partial(_eight, native.int8_multiply),
        "packed": partial(_eight, _eight_packed),
        "8-bit activations": partial(_eight, int8.multiply_w8a8),
        "unpacked": partial(_eight, int8.unpack_and_multiply),
    },
    "int4": {
        "native": partial(_four, native.int4_multiply),
        "packed": partial(_four, _four_packed),
        "8-bit activations": partial(_four, int4.multiply_w8a8),
        "unpacked": partial(_four, _four_unpacked),
    },
}
