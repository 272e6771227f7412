"""What was read lately, kept: a further question about a photo reads its own words alone, and a conversation its last turn.

Two prompts have in common what their embedded tokens have in common, words and image tokens alike.

T tokens, D width.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from salticid.engine.decoder.cache import KeyValueCache
from salticid.engine.decoder.decoder import Decoder

ROOM = 2**28
"""Bytes of keys and values that are kept at most."""


class PrefixCache:
    """Key-value caches of the latest prompts and answers, within `room` bytes; each is lent to one answer at a time."""

    def __init__(self, decoder: Decoder, room: int = ROOM):
        self.decoder, self.room = decoder, room
        self._kept: list[tuple[Tensor, KeyValueCache]] = []  # the latest last
        self._lock = Lock()  # a server may answer in several threads

    def take(self, x_TD: Tensor, tokens: int) -> KeyValueCache:
        """A cache that holds a kept beginning of this prompt, of at least half of it, or an empty one.

        It never holds the whole prompt, whose last token gives the first logits. A shorter beginning, such as what a template puts in
        front of all photos, is not worth a cache that may hold another photo.

        Args:
            x_TD: embedded tokens of the prompt.
            tokens: of prompt and answer, for which a new cache makes room.
        """
        with self._lock:
            lengths = [_common(x_TD[:-1], kept_TD) for kept_TD, _ in self._kept]
            best = max(range(len(lengths)), key=lengths.__getitem__, default=None)
            if best is None or 2 * lengths[best] < len(x_TD):
                cache: KeyValueCache = self.decoder.new_cache(tokens)
                self._make_room(cache.nbytes)
                return cache
            cache = self._kept.pop(best)[1]
            cache.truncate(lengths[best])
            return cache

    def keep(self, x_TD: Tensor, cache: KeyValueCache) -> None:
        """Give a cache back, with the embedded tokens that it holds."""
        with self._lock:
            self._make_room(cache.nbytes)
            if cache.nbytes <= self.room:
                self._kept.append((x_TD[: cache.length], cache))

    def _make_room(self, size: int) -> None:
        while self._kept and size + sum(cache.nbytes for _, cache in self._kept) > self.room:
            self._kept.pop(0)


def _common(x_TD: Tensor, other_TD: Tensor) -> int:
    """Tokens that both begin with."""
    length = min(len(x_TD), len(other_TD))
    equal_T = (x_TD[:length] == other_TD[:length]).all(-1)
    return length if bool(equal_T.all()) else int(torch.argmin(equal_T.byte()))
