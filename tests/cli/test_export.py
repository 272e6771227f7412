"""salticid export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from salticid.cli import extras


def test_export_words_for_llama_cpp(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    out = tmp_path / "out"
    result = run("export", tiny_model_folder, "--to", "gguf", "--part", "language", "--precision", "int8", "--out", out)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{out / 'model.gguf'}\t")
    assert [file.name for file in out.iterdir()] == ["model.gguf"]


def test_export_for_openvino(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    result = run("export", tiny_model_folder, "--to", "openvino", "--out", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert result.out.count(".xml\t") == 3


def test_bad_input(run: Any, one_clear_line: Any, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    out = tmp_path / "out"

    def export(*arguments: object, model: object = tiny_model_folder) -> Any:
        return run("export", model, "--out", out, *arguments)

    one_clear_line(export("--to", "onnx"), 2, "unknown format 'onnx'; known: gguf, openvino")
    one_clear_line(export("--to", "gguf", "--part", "ears"), 2, "unknown part 'ears'; known: all, language, vision")
    one_clear_line(export("--to", "openvino", "--part", "language"), 2, "--part is for gguf")
    one_clear_line(export("--to", "gguf", model="giant"), 3, "no model 'giant'")
    one_clear_line(export("--to", "gguf"), 2, "llama.cpp has no efficientnet_lite tower")
    one_clear_line(export("--to", "gguf", "--part", "language", "--precision", "int3"), 2, "unknown precision 'int3'")
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    one_clear_line(export("--to", "gguf"), 6, "needs gguf, not installed here; run: pip install 'salticid[convert]'")
    one_clear_line(export("--to", "openvino"), 6, "pip install 'salticid[openvino]'")
    one_clear_line(export("--to", "openvino", "--precision", "int8"), 6, "needs openvino, nncf, not installed here")
    assert list(tmp_path.iterdir()) == []
