"""Memory that is freed and asked for again, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from salticid.train.heap import keep_freed_memory

BLOCKS = """
import mmap, resource, sys
from salticid.train.heap import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 * 2**20)
    block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)
    del block
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of the tenth block of 64 MiB."""
    printed = subprocess.run([sys.executable, "-c", BLOCKS, how], capture_output=True, text=True, check=True).stdout
    kept, count = printed.split()
    assert kept == str(how == "keep")
    return int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's options")
def test_blocks_stay_with_the_process() -> None:
    given_back = faults("give back")
    if given_back < 1000:
        pytest.skip("this C library gives no block of 64 MiB back")
    assert faults("keep") < given_back / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory()
