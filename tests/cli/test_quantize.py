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


def test_quantize_to_four_bits_and_measure(run: Any, tiny_model_folder: Path, photos: Any, data_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = run(
        "quantize", tiny_model_folder, "--out", out, "--bits", 4, "--group", 32, "--method", "gptq",
        "--calibrate", data_folder / "flickr8k", "--samples", 2,
    )  # fmt: skip
    assert result.code == 0
    assert "error of layer outputs on the samples: 0." in result.err
    assert run("ask", photos.one, "What?", "--model", out, "--max-new-tokens", 4).code == 0
    table = run("eval", out, "--data", data_folder, "--benchmark", "daquar", "--no-blind")
    assert table.code == 0


def test_quantize_says_what_does_not_go_together(
    run: Any, tiny_model_folder: Path, data_folder: Path, tmp_path: Path, one_clear_line: Any
) -> None:
    out = ("--out", tmp_path / "small")
    one_clear_line(run("quantize", *out), 2, "give either MODEL, a folder, or --shape")
    one_clear_line(run("quantize", *out, "--shape", "phi-9"), 2, "unknown shape 'phi-9'; known: phi-2")
    one_clear_line(run("quantize", tiny_model_folder, *out, "--bits", 4, "--method", "awq"), 2, "needs samples; give --calibrate DATA")
    one_clear_line(run("quantize", tiny_model_folder, *out, "--bits", 4, "--group", 50), 2, "use 32 or 64 or 128")
    one_clear_line(
        run("quantize", tiny_model_folder, *out, "--bits", 4, "--method", "awq", "--calibrate", data_folder / "none"),
        5,
        "flickr8k, daquar, coco",
    )
    for levels in (63, 128):
        one_clear_line(run("quantize", tiny_model_folder, *out, "--levels", levels), 2, "64 to 127")
    assert not (tmp_path / "small").exists()
