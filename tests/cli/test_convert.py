"""`salticid convert tinygpt-v` on upstream's own files, and its bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file


def test_there_and_back(run: Any, shared: Path, tmp_path: Path) -> None:
    base, stage = shared / "fixtures/tinygptv_base", shared / "fixtures/tinygptv_stage4"
    given = ("--checkpoint", stage / "checkpoint_4.pth", "--language", base / "phi", "--vision", base / "eva_vit_g.pth")
    sizes = ("--qformer", base / "blip2_qformer.pth", "--vision-layers", 3, "--vision-heads", 4, "--qformer-heads", 4)
    result = run("convert", "tinygpt-v", *given, *sizes, "--out", tmp_path / "model")
    assert result.code == 0
    assert result.out.splitlines()[0] == str(tmp_path / "model")
    assert "stage 4, 112 px, LoRA kept" in result.out
    result = run("convert", "tinygpt-v", "--to-upstream", tmp_path / "model", "--out", tmp_path / "back.safetensors")
    assert result.code == 0
    back, wanted = load_file(tmp_path / "back.safetensors"), load_file(stage / "full_state_dict.safetensors")
    assert back.keys() == wanted.keys()
    assert all(back[key].equal(wanted[key]) for key in wanted)


def test_missing_and_surplus_options(run: Any, one_clear_line: Any, tmp_path: Path) -> None:
    one_clear_line(run("convert", "tinygpt-v", "--checkpoint", "a.pth", "--out", tmp_path / "out"), 2, "--language, --vision, --qformer")
    back = ("--to-upstream", tmp_path, "--vision", "eva.pth", "--out", tmp_path / "out")
    one_clear_line(run("convert", "tinygpt-v", *back), 2, "leave out --vision")


def test_a_folder_that_is_no_model(run: Any, one_clear_line: Any, tmp_path: Path) -> None:
    one_clear_line(run("convert", "tinygpt-v", "--to-upstream", tmp_path, "--out", tmp_path / "out.pth"), 3, "no model in")


def test_a_language_folder_that_is_none(run: Any, one_clear_line: Any, tmp_path: Path) -> None:
    given = [value for name in ("checkpoint", "language", "vision", "qformer") for value in (f"--{name}", tmp_path / name)]
    one_clear_line(run("convert", "tinygpt-v", *given, "--out", tmp_path / "out"), 4, "no language model")
    assert not list(tmp_path.iterdir())
