from __future__ import annotations

import json
import platform
from typing import Any

import torch

import salticid
from salticid.quant.kernels import choose_kernel
from salticid.quant.w8a8 import LEAST_SIDE


def test_env_says_what_runs_here(run: Any) -> None:
    facts = json.loads(run("env", "--json").out)
    assert facts["salticid"] == salticid.__version__
    assert facts["python"] == platform.python_version()
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["threads"] == torch.get_num_threads()
    assert "cpu" in facts["torch devices"]
    assert facts["cores"] >= facts["usable cores"] >= 1


def test_env_says_which_kernels_are_chosen(run: Any) -> None:
    facts = json.loads(run("env", "--json").out)
    for bits in (8, 4):
        kernel, dtype = facts[f"int{bits} decode"].split(", ")
        assert kernel == choose_kernel(bits, getattr(torch, dtype), 1, (1, 1))
        assert facts[f"int{bits} prompt"].startswith(choose_kernel(bits, getattr(torch, dtype), 600, (LEAST_SIDE, LEAST_SIDE)))


def test_env_for_people(run: Any) -> None:
    result = run("env")
    assert (result.code, result.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines() if not line.startswith(("torch ", "usable ", "int")))
    assert lines["salticid"] == salticid.__version__
    assert set(lines) >= {"python", "transformers", "processor", "features", "memory", "threads"}
