from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from salticid.engine.decoder.cache import BLOCK, CacheShape, KeyValueCache

BY_TOKEN = CacheShape(layers=2, heads=3, depth=4, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(params=[False, True], ids=["keys by token", "keys by channel"])
def shape(request: pytest.FixtureRequest) -> CacheShape:
    return replace(BY_TOKEN, keys_by_channel=request.param)


def write(cache: KeyValueCache, values: Tensor) -> None:
    """Layer l gets `values` (T,) + 100 l as keys, and their negatives as values, in every row."""
    for layer, slot in enumerate(cache.extend(len(values))):
        slot.new_keys.copy_((values + 100 * layer)[:, None].expand_as(slot.new_keys))
        slot.new_values.copy_(-(values + 100 * layer)[:, None].expand_as(slot.new_values))


def read(cache: KeyValueCache, layer: int, row: int = 0) -> list[float]:
    """First numbers of the keys that are there; the cache is left as it is."""
    slot = cache.extend(0)[layer]
    assert torch.equal(slot.keys, -slot.values)
    return slot.keys[row, 0, :, 0].tolist()


def test_holds_what_was_written_through_growth(shape: CacheShape) -> None:
    cache = KeyValueCache(shape, 5)
    first, more = torch.arange(5.0), torch.arange(5.0, BLOCK + 7)
    write(cache, first)
    write(cache, more)
    assert cache.length == BLOCK + 7 <= cache.capacity
    assert read(cache, 0) == [*range(BLOCK + 7)]
    assert read(cache, 1) == [100 + number for number in range(BLOCK + 7)]


def test_growth_keeps_pace_with_long_texts(shape: CacheShape) -> None:
    cache, sizes = KeyValueCache(shape, 1), set()
    for _ in range(20 * BLOCK):
        cache.extend(1)
        sizes.add(cache.capacity)
    assert len(sizes) < 10


def test_truncated_tokens_are_written_over(shape: CacheShape) -> None:
    cache = KeyValueCache(shape, 5)
    write(cache, torch.arange(5.0))
    cache.truncate(2)
    write(cache, torch.tensor([7.0]))
    assert read(cache, 0) == [0, 1, 7]


def test_rows_of_unequal_length_end_together(shape: CacheShape) -> None:
    batch = KeyValueCache(shape, 6, padding=[0, 2])
    batch.length = 4
    for row, count in enumerate((4, 2)):
        single = KeyValueCache(shape, count)
        write(single, torch.arange(10.0, 10 + count))
        batch.put(row, single)
    assert (read(batch, 0, 0), read(batch, 0, 1)) == ([10, 11, 12, 13], [0, 0, 10, 11])
    write(batch, torch.tensor([20.0]))
    mask = batch.mask()
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[0] * 5, [-torch.inf, -torch.inf, 0, 0, 0]]
    batch.keep([1])
    # Stored as the shape says after rows were dropped, too: a step reads the store where it lies.
    assert batch.extend(0)[0].keys.stride(2 if shape.keys_by_channel else 3) == 1
    assert read(batch, 1) == [0, 0, 110, 111, 120]
    mask = batch.mask()
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[-torch.inf, -torch.inf, 0, 0, 0]]


def test_a_row_is_copied(shape: CacheShape) -> None:
    batch = KeyValueCache(shape, 6, padding=[0, 1, 1])
    batch.length = 4
    for row, first in enumerate((10.0, 20.0)):
        single = KeyValueCache(shape, 4)
        write(single, torch.arange(first, first + 4 - row))
        batch.put(row, single)
    batch.copy(1, 2)
    assert [read(batch, 1, row) for row in range(3)] == [[110, 111, 112, 113], [0, 120, 121, 122], [0, 120, 121, 122]]


def test_rows_of_equal_length_need_no_mask(shape: CacheShape) -> None:
    batch = KeyValueCache(shape, 6, padding=[0, 3, 0])
    batch.keep([0, 2])
    assert batch.mask() is None
    assert batch.padding_B is None


def test_the_mask_grows_with_the_cache(shape: CacheShape) -> None:
    batch = KeyValueCache(shape, 6, padding=[0, 3])
    assert batch.mask() is not None
    batch.extend(2 * BLOCK)
    mask = batch.mask()
    assert mask is not None
    assert mask.shape == (2, 1, 1, 2 * BLOCK)
    assert mask[1, 0, 0].isinf().sum() == 3
