"""The kernels for GPUs, where there may be none: what they compute in Triton's interpreter, and that they compile for real ones.

Both happen in processes of their own: whether Triton interprets is decided when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from salticid.quant import gpu

HERE = Path(__file__).parent


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("script", "interpret"), [("interpreted_gpu.py", "1"), ("compiled_gpu.py", "0")])
def test_kernels(script: str, interpret: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
    command = [sys.executable, "-m", "pytest", *options, str(HERE / script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_a_processor_has_its_own_kernels() -> None:
    assert gpu.most_rows(torch.device("cpu")) == 0
    assert not gpu.serves(torch.ones(1, 64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_reason_is_given() -> None:
    assert gpu.why_not() == "no GPU"
    assert gpu.kernels() is None
