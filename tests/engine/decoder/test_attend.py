"""Every way of attending beside the formula, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from salticid.engine.decoder import attend
from salticid.engine.decoder.attend import attend_causally, attend_once, reads_channels
from salticid.quant import native

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
WEIGHT_ROUNDING = 4e-3  # of bfloat16, in which weights are multiplied
SCALE = 0.3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | float = 0.0, softcap: float | None = None) -> Tensor:
    repeated = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeated, 1), v.repeat_interleave(repeated, 1)
    scores = q @ k.transpose(-1, -2) * SCALE
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    return (scores + mask).softmax(-1) @ v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("before", "new"), [(0, 13), (7, 6), (9, 1)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_prompt(
    dtype: torch.dtype, groups: int, before: int, new: int, window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend, "QUERY_BLOCK", 4)  # so that bfloat16 and a softcap go through several blocks
    q, k, v = draw(1, 4, new, 8, seed=1), draw(1, groups, before + new, 8, seed=2), draw(1, groups, before + new, 8, seed=3)
    place_T, other_S = torch.arange(before, before + new)[:, None], torch.arange(before + new)
    seen_TS = (other_S <= place_T) & (other_S > place_T - (window or 99))
    expected = written_out(q, k, v, torch.zeros(seen_TS.shape).masked_fill(~seen_TS, -torch.inf), softcap)
    found = attend_causally(q.to(dtype), k.to(dtype), v.to(dtype), SCALE, softcap, window)
    assert_close(found.float(), expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("padded", [False, True])
def test_a_step(dtype: torch.dtype, groups: int, softcap: float | None, padded: bool) -> None:
    q, k, v = draw(3, 4, 1, 8, seed=1), draw(3, groups, 11, 8, seed=2), draw(3, groups, 11, 8, seed=3)
    mask = torch.zeros(3, 1, 1, 11)
    mask[1, ..., :4] = -torch.inf
    expected = written_out(q, k, v, mask if padded else 0.0, softcap)
    shared = q.view(3, groups, 4 // groups, 8).to(dtype)
    found = attend_once(shared, k.to(dtype), v.to(dtype), mask.to(dtype) if padded else None, SCALE, softcap)
    assert_close(found.reshape(3, 4, 1, 8).float(), expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("padded", [False, True])
def test_a_step_over_keys_by_channel(torch_kernels: None, dtype: torch.dtype, start: int, softcap: float | None, padded: bool) -> None:
    """Eleven tokens of a longer store, of which a window may see the last alone; the rest of the store is nothing to multiply with."""
    q, keys, values = draw(2, 4, 1, 8, seed=1), draw(2, 4, 8, 16, seed=2), draw(2, 4, 16, 8, seed=3)
    keys[..., 11:], values[:, :, 11:] = torch.nan, torch.nan
    mask = torch.zeros(2, 1, 1, 11 - start)
    mask[1, ..., :4] = -torch.inf
    seen = keys.transpose(2, 3)[:, :, start:11], values[:, :, start:11]
    expected = written_out(q, *seen, mask if padded else 0.0, softcap)
    stored = keys.to(dtype).transpose(2, 3)[:, :, start:11], values.to(dtype)[:, :, start:11]
    found = attend_once(q.to(dtype), *stored, mask.to(dtype) if padded else None, SCALE, softcap)
    assert_close(found.float(), expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])


@pytest.mark.usefixtures("torch_kernels")
def test_rows_are_summed_where_heads_share_no_keys() -> None:
    processor = torch.device("cpu")
    assert not reads_channels(4, 2, torch.bfloat16, processor)
    assert not reads_channels(4, 4, torch.float32, processor)
    assert not reads_channels(4, 4, torch.bfloat16, torch.device("meta"))
    assert reads_channels(4, 4, torch.bfloat16, processor) == attend.HAS_PACKED_BFLOAT16


@pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    ("shared", "depth", "tokens", "start"), [(1, 80, 617, 0), (3, 64, 130, 3), (2, 20, 65, 0), (1, 256, 33, 1), (4, 7, 1, 0)]
)
def test_our_own_kernel(softcap: float | None, shared: int, depth: int, tokens: int, start: int) -> None:
    q, keys, values = draw(2, 3, shared, depth, seed=1), draw(2, 3, depth, tokens + 9, seed=2), draw(2, 3, tokens + 9, depth, seed=3)
    keys[..., tokens:], values[:, :, tokens:] = torch.nan, torch.nan
    mask = torch.zeros(2, 1, 1, tokens)
    mask[1, ..., : tokens // 2] = -torch.inf
    q, keys, values, mask = (
        q.bfloat16(),
        keys.bfloat16().transpose(2, 3)[:, :, start:tokens],
        values.bfloat16(),
        mask.bfloat16()[..., start:],
    )
    values = values[:, :, start:tokens]
    assert reads_channels(3 * shared, 3, torch.bfloat16, torch.device("cpu"))
    seen = [store.float().repeat_interleave(shared, 1) for store in (keys, values)]
    for given in (None, mask):
        expected = written_out(q.float().view(2, 3 * shared, 1, depth), *seen, 0.0 if given is None else given.float(), softcap)
        found = attend_once(q, keys, values, given, SCALE, softcap)
        assert_close(found.float().view(expected.shape), expected, atol=1e-3, rtol=2**-7)


@pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize(
    ("shared", "depth", "before", "new"), [(1, 80, 0, 131), (3, 64, 40, 90), (2, 20, 7, 6), (1, 256, 9, 1), (4, 7, 0, 3), (2, 128, 3, 66)]
)
def test_our_own_kernel_for_a_prompt(softcap: float | None, window: int | None, shared: int, depth: int, before: int, new: int) -> None:
    whole = before + new
    q, keys, values = draw(new, 3 * shared, depth, seed=1), draw(3, depth, whole + 9, seed=2), draw(3, whole + 9, depth, seed=3)
    keys[..., whole:], values[:, whole:] = torch.nan, torch.nan
    q, keys, values = q.bfloat16(), keys.bfloat16().transpose(1, 2)[:, :whole], values.bfloat16()[:, :whole]
    place_T, other_S = torch.arange(before, whole).unsqueeze(1), torch.arange(whole)
    seen_TS = (other_S <= place_T) & (other_S > place_T - (window or 999))
    mask = torch.zeros(seen_TS.shape).masked_fill(~seen_TS, -torch.inf)
    expected = written_out(q.float().transpose(0, 1)[None], keys.float()[None], values.float()[None], mask, softcap)[0].transpose(0, 1)
    found = native.attend_prompt(q, keys, values, SCALE, softcap, window)
    assert_close(found.float(), expected, atol=WEIGHT_ROUNDING, rtol=2**-7)


@pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")
@pytest.mark.parametrize(("heads", "depth", "patches"), [(2, 88, 131), (3, 64, 50), (1, 72, 1), (2, 7, 66)])
def test_our_own_kernel_for_patches(heads: int, depth: int, patches: int) -> None:
    q, keys, values = draw(patches, heads, depth, seed=1), draw(heads, depth, patches, seed=2), draw(heads, patches, depth, seed=3)
    q, keys, values = q.bfloat16(), keys.bfloat16().transpose(1, 2), values.bfloat16()
    expected = written_out(q.float().transpose(0, 1)[None], keys.float()[None], values.float()[None], 0.0, None)[0].transpose(0, 1)
    found = native.attend_prompt(q, keys, values, SCALE, causal=False)
    assert_close(found.float(), expected, atol=WEIGHT_ROUNDING, rtol=2**-7)
