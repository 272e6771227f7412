"""salticid upcycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from salticid.checkpoints.load import load_config


def test_upcycle(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sparse"
    result = run("upcycle", tiny_model_folder, "--experts", "3,2", "--top-k", 2, "--layers", "0,1", "--out", out)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{out}\n5 experts in layers 0, 1; each token visits 2 per layer\n"
    assert load_config(out).experts["experts"] == [3, 2]


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
