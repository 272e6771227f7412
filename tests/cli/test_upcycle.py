"""salticid upcycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from salticid.checkpoints.load import load_config, load_model


def test_upcycle(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sparse"
    result = run("upcycle", tiny_model_folder, "--experts", "3,2", "--top-k", 2, "--layers", "0,1", "--out", out)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{out}\n5 experts in layers 0, 1; each token visits 2 per layer\n"
    assert load_config(out).experts["experts"] == [3, 2]


def test_small_weights_are_unpacked(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    small, out = tmp_path / "small", tmp_path / "sparse"
    assert run("quantize", tiny_model_folder, "--out", small).code == 0
    result = run("upcycle", small, "--experts", 2, "--top-k", 1, "--layers", "all", "--out", out)
    assert (result.code, result.err) == (0, "")
    assert getattr(load_config(out), "quantization_config", None) is None
    unpacked: Any = load_model(small)
    unpacked.dequantize(torch.float32)
    dense = unpacked.language_model.model.layers[1].mlp.down_proj.weight
    sparse: Any = load_model(out)
    assert torch.equal(sparse.language_model.model.layers[1].mlp.experts.down_proj[1], dense)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--top-k", "5"], "top_k 5 must lie between 1 and the number of experts, 4"),
        (["--layers", "0,7"], "layers 0 to 1"),
        (["--layers", "odd"], "Unknown layers 'odd'"),
        (["--layers", "0,x"], "--layers is '0,x'"),
        (["--experts", "many"], "--experts is 'many'"),
        (["--routing", "random"], "Unknown routing 'random'"),
        (["--reinitialise", "2"], "must lie between 0 and 1"),
    ],
)
def test_bad_flags(run: Any, one_clear_line: Any, tiny_model_folder: Path, tmp_path: Path, flags: list[str], says: str) -> None:
    one_clear_line(run("upcycle", tiny_model_folder, *flags, "--out", tmp_path / "sparse"), 2, says)
    assert list(tmp_path.iterdir()) == []
