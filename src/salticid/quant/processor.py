"""What this machine's processor multiplies fast, as far as torch says: the facts behind the choice of kernels.

Measured on one machine by switching instructions off (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`; see benchmarks/kernels.md). Arm was not
measured: it keeps to kernels of torch that have vector code there.
"""

from __future__ import annotations

import platform
from functools import cache

import torch

X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
ARM = platform.machine().lower() in ("aarch64", "arm64")

# "AVX512", "AVX2", or "DEFAULT" for less and for what is not x86.
CAPABILITY = torch.backends.cpu.get_cpu_capability()

# torch's kernels for packed weights have vector code for bfloat16 on these; for other dtypes they run scalar loops.
HAS_PACKED_BFLOAT16 = X86 and CAPABILITY in ("AVX512", "AVX2")

# With AVX2 alone float32 is four times as fast as bfloat16 in plain products, convolutions and attention. Models compute in it there, and
# only what goes into a packed kernel is rounded to bfloat16.
ROUNDS_FLOAT32 = HAS_PACKED_BFLOAT16 and CAPABILITY != "AVX512"


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; without, training in it is slower than in float32.

    With AVX2 alone a hundred times: 1.3 GFLOPS where float32 has 110 (two cores of a Zen 3).
    """
    return X86 and torch.cpu._is_avx512_bf16_supported()


@cache
def largest_int8_weight() -> int:
    """The largest weight that oneDNN multiplies with 8-bit activations both exactly and faster than floats.

    127 with VNNI. Without it two products are added up in 16 bits, where they saturate, unless weights are 64 at most. 0 where torch has no
    more than a scalar loop.
    """
    if not (X86 and CAPABILITY in ("AVX512", "AVX2") and torch.backends.mkldnn.is_available()):
        return 0
    x_MK = torch.full((32, 128), 127, dtype=torch.int8)
    candidates = {weight: torch.full((128, 64), weight, dtype=torch.int8) for weight in (127, 64)}
    return next((weight for weight, weight_KN in candidates.items() if (torch._int_mm(x_MK, weight_KN) == 128 * 127 * weight).all()), 0)
