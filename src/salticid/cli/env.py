"""salticid env: what a bug report needs to say about the machine."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from salticid.cli.flags import Json

EXAMPLE = "Example:  salticid env"

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "pillow", "typer")
OPTIONAL_PACKAGES = ("accelerate", "peft", "pydantic", "tensorboard", "gguf", "openvino", "nncf")

# Instructions that decide how fast matrices are multiplied, as Linux names them.
FEATURES = "sse4_2 avx f16c fma avx2 avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16"
# Rows of a prompt with a photo.
PROMPT = 600
ARM_FEATURES = "asimd asimddp i8mm bf16 sve sve2 svei8mm svebf16 sme"


def env(as_json: Json = False) -> None:
    """Print versions, processor features, threads and devices, for a bug report."""
    facts = _software() | _machine() | _torch() | _kernels()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        print(f"{name:16} {shown}")


Fact = str | int | list[str]


def _software() -> dict[str, Fact]:
    import salticid

    facts: dict[str, Fact] = {"salticid": salticid.__version__, "python": platform.python_version()}
    for package in (*PACKAGES, *OPTIONAL_PACKAGES):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _machine() -> dict[str, Fact]:
    described = _linux_processor()
    flags = set(described.get("flags", described.get("Features", "")).split())
    return {
        "platform": platform.platform(),
        "processor": described.get("model name") or platform.processor() or platform.machine(),
        "features": [feature for feature in f"{FEATURES} {ARM_FEATURES}".split() if feature in flags],
        "cores": os.cpu_count() or 1,
        "usable cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": _memory(),
    }


def _linux_processor() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):
        return "unknown"


def _torch() -> dict[str, Fact]:
    import torch

    devices = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    kernels = {
        "onednn": torch.backends.mkldnn.is_available(),
        "mkl": torch.backends.mkl.is_available(),
        "openmp": torch.backends.openmp.is_available(),
    }
    return {
        "threads": torch.get_num_threads(),
        "torch vectors": torch.backends.cpu.get_cpu_capability(),
        "torch kernels": [name for name, present in kernels.items() if present],
        "torch devices": [*devices, "cpu"],
    }


def _kernels() -> dict[str, Fact]:
    """What small weights are multiplied by on this processor."""
    import torch

    from salticid.engine.load import SMALL_BITS, choose_dtype
    from salticid.quant import gpu, native
    from salticid.quant.kernels import choose_kernel
    from salticid.quant.w8a8 import LEAST_SIDE

    facts: dict[str, Fact] = {"native kernels": native.why_not() or "used", "GPU kernels": gpu.why_not() or "used"}
    for precision, bits in SMALL_BITS.items():
        dtype = choose_dtype(precision, torch.device("cpu"), small=True)
        wide, narrow = (choose_kernel(bits, dtype, PROMPT, (side, side)) for side in (LEAST_SIDE, LEAST_SIDE - 1))
        facts[f"{precision} decode"] = f"{choose_kernel(bits, dtype, 1, (1, 1))}, {str(dtype).removeprefix('torch.')}"
        facts[f"{precision} prompt"] = wide if wide == narrow else f"{wide}; {narrow} where a side of the weight is below {LEAST_SIDE}"
    return facts
