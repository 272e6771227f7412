"""What a training frees stays with its process: a processor's steps free gigabytes and ask for them again at once.

glibc gives blocks of more than 32 MiB back to the kernel, which clears every page anew when the next step asks.
"""

from __future__ import annotations

import ctypes
import sys

# The numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
KEPT = 2**31 - 1
AHEAD = 256 * 2**20


def keep_freed_memory() -> bool:
    """Take large blocks from the heap, and keep it; False where the C library is not glibc, and nothing is changed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # One arena: the backward pass runs in a thread of its own, and would otherwise keep a second heap of the same size.
    options = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, AHEAD))
    return sum(mallopt(option, value) for option, value in options) == len(options)
