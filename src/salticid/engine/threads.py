"""How the threads of a product wait for each other. Loads no torch, for it must be said before torch is."""

from __future__ import annotations

import os

SPINS = "700"
"""About as long as what lies between two products of a small model.

By default GNU's OpenMP spins for milliseconds, which is hardly faster; where another program wants the same core, it burns the time
slices that the next product needs. Not to spin at all wakes a sleeping thread for each of a hundred products per token.
`benchmarks/engine.md` has the figures.
"""
ANSWERED_BY_THE_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Say so in the environment, unless the user has; in a process that has imported torch it is too late, and nothing happens."""
    if not any(name in os.environ for name in ANSWERED_BY_THE_USER):
        os.environ["GOMP_SPINCOUNT"] = SPINS
