"""How fast this machine reads memory: the ceiling of decoding, where every weight is read once for each token."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

ROW = 4096


def read_bandwidth(size: int = 1 << 30, passes: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes per second that all of torch's threads together read from a buffer of `size` bytes, the fastest pass of several.

    The buffer should be many times larger than the processor's caches. Read both as a plain sum and as a matrix times a vector, which is
    what decoding does; the faster one counts.
    """
    matrix = torch.ones(max(1, size // (4 * ROW)), ROW)  # written, so that every page is really there
    vector = torch.ones(ROW)
    fastest = float("inf")
    for read in (matrix.sum, lambda: matrix @ vector):
        for _ in range(passes + 1):
            start = clock()
            read()
            fastest = min(fastest, clock() - start)
    return matrix.nbytes / max(fastest, 1e-9)
