from __future__ import annotations

from pathlib import Path
from typing import Any


def test_quantize_makes_a_smaller_folder_that_answers(run: Any, tiny_model_folder: Path, photos: Any, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = run("quantize", tiny_model_folder, "--out", out)
    assert result.code == 0
    assert result.out.startswith(f"{out}\t")
    assert (out / "model.safetensors").stat().st_size < (tiny_model_folder / "model.safetensors").stat().st_size / 1.5
    assert (out / "model.safetensors").stat().st_mode & 0o444 == 0o444
    answer = run("caption", photos.one, "--model", out, "--max-new-tokens", 6)
    assert answer.code == 0
    assert answer.out.strip()


def test_quantize_overwrites_nothing(run: Any, tiny_model_folder: Path, tmp_path: Path, one_clear_line: Any) -> None:
    (tmp_path / "kept.txt").write_text("precious")
    result = run("quantize", tiny_model_folder, "--out", tmp_path)
    one_clear_line(result, 4, "exists already; choose another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_quantize_refuses_other_bits_and_small_models(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    assert run("quantize", tiny_model_folder, "--out", tmp_path / "a", "--bits", 3).code == 2
    assert run("quantize", tiny_model_folder, "--out", tmp_path / "b").code == 0
    again = run("quantize", tmp_path / "b", "--out", tmp_path / "c")
    assert again.code != 0
    assert again.err.startswith("error: ")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "c").exists()
