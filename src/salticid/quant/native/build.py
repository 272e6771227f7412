"""Compile the kernels. The standard library alone: this runs while the package is installed, from `hatch_build.py`.

python src/salticid/quant/native/build.py    # again, after a change
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(f"{name}.c") for name in ("supported", "products", "attention", "activations", "step"))
LIBRARY = Path(__file__).with_name("kernels.so")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden")


def build(target: Path = LIBRARY) -> str | None:
    """Write the shared library; the reason where there is none to be had here, which is no error: torch's own kernels serve then."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"there is no code for {sys.platform} on {platform.machine()}"
    compiler = shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, ("cc", "gcc", "clang")), "cc")]
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [*compiler, *FLAGS, "-o", str(partial), *map(str, SOURCES), "-lm"], capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the C compiler {compiler[0]} cannot be run: {error}"
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        return f"{' '.join(compiler)} failed: {(done.stderr or done.stdout).strip()[:500]}"
    partial.replace(target)
    return None


if __name__ == "__main__":
    problem = build()
    print(problem or f"wrote {LIBRARY}")
    sys.exit(problem is not None)
