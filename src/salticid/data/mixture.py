"""Mixes sources by weight into one long list whose every item can be made on its own, so that training resumes anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from salticid.data.conversation import Example, Source
from salticid.errors import ConfigurationError

_SLOTS = 1000


class Mixture:
    """`length` examples: item i depends on `seed` and i alone.

    Sources take turns in a fixed pattern of 1,000 slots, spread by weight. Each source is walked in epochs; every epoch shows
    each photo once, in an order of its own.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], length: int, seed: int) -> None:
        if not sources or len(sources) != len(weights):
            raise ConfigurationError(f"{len(sources)} sources need as many weights, not {len(weights)}; give one weight per source.")
        if min(weights) <= 0 or length < 0 or any(len(source) == 0 for source in sources):
            raise ConfigurationError(
                "Weights must be above 0, the length 0 or more, and no source empty; leave out sources that you do not want."
            )
        self.sources, self.length, self.seed = list(sources), length, seed
        self._pattern, self._ranks, self._shares = _interleave(weights)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> Example:
        source, index, epoch = self.locate(item)
        return self.sources[source].example(index, _hash(self.seed, "example", source, index, epoch))

    def locate(self, item: int) -> tuple[int, int, int]:
        """(source, photo, epoch) of an item. Raises IndexError beyond the length."""
        if not 0 <= item < self.length:
            raise IndexError(f"item {item} of a mixture of {self.length}")
        block, slot = divmod(item, _SLOTS)
        source = self._pattern[slot]
        epoch, place = divmod(block * self._shares[source] + self._ranks[slot], len(self.sources[source]))
        return source, shuffled(place, len(self.sources[source]), _hash(self.seed, "order", source, epoch)), epoch


def _interleave(weights: Sequence[float]) -> tuple[list[int], list[int], list[int]]:
    """Source of each slot, its rank among the source's slots, and the number of slots of each source."""
    exact = [weight / sum(weights) * _SLOTS for weight in weights]
    shares = [max(int(share), 1) for share in exact]
    by_need = sorted(range(len(shares)), key=lambda source: shares[source] - exact[source])
    for turn in range(max(_SLOTS - sum(shares), 0)):
        shares[by_need[turn % len(shares)]] += 1
    while sum(shares) > _SLOTS:
        shares[shares.index(max(shares))] -= 1
    spread = sorted(((rank + 0.5) / share, source, rank) for source, share in enumerate(shares) for rank in range(share))
    return [source for _, source, _ in spread], [rank for _, _, rank in spread], shares


def _hash(*parts: int | str) -> int:
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=6).digest(), "big")


def shuffled(place: int, size: int, key: int) -> int:
    """Where `place` goes in a shuffle of `size` things: a keyed permutation (a Feistel network, walked until it lands inside)."""
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (_hash(key, turn, right) & mask)
        place = left << half | right
        if place < size:
            return place
