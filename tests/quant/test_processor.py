"""Other processors, as far as this one can play them: torch and oneDNN are told to use fewer instructions."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from salticid.quant.processor import X86, largest_int8_weight

SCRIPT = """
import json, torch
from salticid.engine.load import choose_dtype
from salticid.quant import w8a8
from salticid.quant.int4 import Int4Linear
from salticid.quant.int8 import Int8Linear
from salticid.quant.kernels import choose_kernel, fuse

w8a8.LEAST_SIDE = 1
torch.manual_seed(0)
dtype = choose_dtype("int4", torch.device("cpu"), small=True)
facts = {"dtype": str(dtype), "errors": [], "kernels": []}
for bits, kind in ((8, Int8Linear.from_float), (4, lambda linear: Int4Linear.from_float(linear, 32))):
    layer = kind(torch.nn.Linear(128, 100)).to(dtype)
    product, plain = fuse([layer]), layer.to_float(torch.float32)
    for rows in (1, 200):
        x = torch.randn(rows, 128).to(dtype)
        with torch.inference_mode():
            y, expected = product(x).float(), plain(x.float())
        facts["errors"].append(((y - expected).norm() / expected.norm()).item())
        facts["kernels"].append(choose_kernel(bits, dtype, rows, (100, 128)))
print(json.dumps(facts))
"""

# For each: the dtype that models with small weights compute in, and kernels of 8 and 4 bits for one row and for 200.
EIGHT = "8-bit activations"
PROCESSORS = {
    ("avx512", "AVX512_CORE_VNNI"): ("torch.bfloat16", ["packed", EIGHT, "packed", EIGHT]),
    ("avx512", "AVX512_CORE"): ("torch.bfloat16", ["packed", "unpacked", "packed", EIGHT]),
    ("avx2", "AVX2_VNNI"): ("torch.float32", ["packed", EIGHT, "packed", EIGHT]),
    ("avx2", "AVX2"): ("torch.float32", ["packed", "unpacked", "packed", EIGHT]),
    ("default", "SSE41"): ("torch.float32", ["unpacked"] * 4),
}


def test_the_largest_weight_is_multiplied_exactly() -> None:
    largest = largest_int8_weight()
    if not largest:
        pytest.skip("this processor multiplies 8-bit integers slowly")
    for activation, weight in itertools.product((-127, 127), (-largest, largest)):
        x, w = torch.full((33, 200), activation, dtype=torch.int8), torch.full((70, 200), weight, dtype=torch.int8)
        assert (torch._int_mm(x, w.T) == 200 * activation * weight).all()


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="instructions of x86")
@pytest.mark.parametrize("instructions", PROCESSORS)
def test_fewer_instructions(instructions: tuple[str, str]) -> None:
    dtype, kernels = PROCESSORS[instructions]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": instructions[0], "ONEDNN_MAX_CPU_ISA": instructions[1]}
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["dtype"], facts["kernels"]) == (dtype, kernels)
    assert max(facts["errors"]) < (2e-2 if "packed" in kernels else 1e-5)
