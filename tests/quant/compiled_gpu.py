"""Run by `test_gpu.py` in a process where Triton compiles, which needs no GPU: for which one, is said."""

from __future__ import annotations

from typing import Any

import pytest
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from salticid.quant import gpu, int4, triton_kernels

SIZES = {"ROWS": gpu.MOST_ROWS, "OUTPUTS": gpu.INT8_OUTPUTS, "INPUTS": gpu.INT8_INPUTS}


@pytest.mark.parametrize(("capability", "dtype"), [(75, "fp16"), (80, "bf16"), (90, "bf16")])
@pytest.mark.parametrize(
    ("kernel", "pointers", "sizes"),
    [
        (triton_kernels.int8, {"weight": "*i8", "sums": "*fp32"}, SIZES),
        *(
            (
                triton_kernels.int4,
                {"weight": "*u8", "scale_zero": "*bf16", "sums": "*fp32"},
                {"ROWS": gpu.MOST_ROWS, "HALF": int4.TILE // 2, "GROUP": group},
            )
            for group in (min(int4.GROUPS), max(int4.GROUPS))
        ),
    ],
)
def test_compiles(kernel: Any, pointers: dict[str, str], sizes: dict[str, int], capability: int, dtype: str) -> None:
    kinds = {"x": f"*{dtype}", **pointers, **dict.fromkeys(sizes, "constexpr")}
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    made = compile_kernel(ASTSource(fn=kernel, signature=signature, constexprs=sizes), target=GPUTarget("cuda", capability, 32))
    assert made.asm["cubin"]
    assert made.metadata.shared <= 48 * 1024  # what every GPU gives a block of threads
