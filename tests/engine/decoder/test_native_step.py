"""One call per token computes what the plan does, for every language model and everything that may be added to one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from salticid.engine.decoder.decoder import LeanDecoder
from salticid.engine.decoder.plan import read_plan
from salticid.models import VisionLanguageModel
from salticid.quant import native, quantize_model

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")

UNKNOWN_THERE = ("experts beside a shared one", "experts beside a residual")
Tiny = Callable[..., VisionLanguageModel]


def small(tiny: Tiny, variant: str, bits: int) -> VisionLanguageModel:
    return quantize_model(tiny(variant), bits=bits, group=32).bfloat16()


def read(decoder: LeanDecoder, words: list[int], one_call: bool) -> tuple[Tensor, Tensor]:
    """Logits after each word behind a prompt, and the keys and values that were kept."""
    step = decoder._read_one
    decoder._read_one = step if one_call else None
    cache = decoder.new_cache(4)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        decoder.prefill(torch.randn(9, 32, generator=generator).to(decoder.model.dtype), cache)
        logits = torch.cat([decoder.step(torch.tensor([word]), cache) for word in words]).float()
        kept = torch.stack([torch.stack([slot.keys, slot.values]) for slot in cache.extend(0)]).float()
    decoder._read_one = step
    return logits, kept


@pytest.mark.parametrize("bits", [8, 4])
def test_every_model(tiny: Tiny, variant: str, bits: int) -> None:
    model = small(tiny, variant, bits)
    decoder = LeanDecoder(model, read_plan(model))
    assert (decoder._read_one is None) == (variant in UNKNOWN_THERE)
    if decoder._read_one is None:
        return
    plain = model.dequantize().float()
    expected, kept = read(LeanDecoder(plain, read_plan(plain)), [5, 9, 11, 30], one_call=False)
    for one_call in (True, False):
        logits, own = read(decoder, [5, 9, 11, 30], one_call)
        assert (logits - expected).norm() < 0.08 * expected.norm()
        assert (own - kept).norm() < 0.04 * kept.norm()


def test_layers_with_float_weights_are_called_one_by_one(tiny: Tiny) -> None:
    model = tiny("llama", torch.bfloat16)
    assert LeanDecoder(model, read_plan(model))._read_one is None
    model = quantize_model(tiny("llama"), bits=8)
    assert LeanDecoder(model, read_plan(model))._read_one is None


def test_a_cache_that_grows(tiny: Tiny) -> None:
    model = small(tiny, "phi", 4)
    decoder = LeanDecoder(model, read_plan(model))
    words = torch.randint(3, 60, (300,), generator=torch.Generator().manual_seed(3)).tolist()[:50]
    cache, other = decoder.new_cache(1), decoder.new_cache(200)
    cache._keys, cache._values = (store[:, :, :, :4].clone() for store in (cache._keys, cache._values))
    cache._keys = cache._keys.transpose(3, 4).contiguous().transpose(3, 4)
    with torch.inference_mode():
        for word in words:
            assert torch.equal(decoder.step(torch.tensor([word]), cache), decoder.step(torch.tensor([word]), other))


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(tiny: Tiny, threads: int) -> None:
    model = small(tiny, "experts", 4)
    decoder = LeanDecoder(model, read_plan(model))
    expected, _ = read(decoder, [5, 9], one_call=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(read(decoder, [5, 9], one_call=True)[0], expected)
    finally:
        torch.set_num_threads(before)
