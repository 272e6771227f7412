"""Files for llama.cpp appear together, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salticid.checkpoints.export import gguf_folder
from salticid.checkpoints.export.gguf_folder import export_gguf
from salticid.errors import CheckpointError, InputError


def test_both_files(build: Callable[..., Any], read: Any, tmp_path: Path) -> None:
    notes = export_gguf(*build("siglip_vision_model", "qwen2"), tmp_path / "out", "int8", name="tiny")
    assert notes == []
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["mmproj.gguf", "model.gguf"]
    _, keys = read(tmp_path / "out" / "model.gguf")
    assert (keys["general.name"], keys["general.architecture"], keys["tokenizer.ggml.pre"]) == ("tiny", "qwen2", "gpt-2")
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.add_bos_token"]) == (2, False)
    assert "<|im_start|>" in keys["tokenizer.chat_template"]
    assert len(keys["tokenizer.ggml.tokens"]) == keys["qwen2.vocab_size"]


def test_the_words_alone_of_a_model_that_llama_cpp_cannot_see_with(build: Callable[..., Any], tmp_path: Path) -> None:
    model, processor = build(template="tinygpt_v_describe")
    (note,) = export_gguf(model, processor, tmp_path / "out", parts=["language"])
    assert "answers end with '###'" in note
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "int2"}, "unknown precision 'int2' of GGUF files; known: fp32, fp16, bf16, int8, int4"),
        ({"parts": ["ears"]}, "unknown parts 'ears'; known: language, vision"),
        ({"class_token": "middle"}, "unknown place of the class token 'middle'; known: last, first"),
        ({}, "has no efficientnet_lite tower"),
    ],
)
def test_refusals_write_nothing(options: dict[str, Any], says: str, build: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        export_gguf(*build(), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_folder_in_the_way(build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build("siglip_vision_model")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(gguf_folder, "write_projector", full)
        with pytest.raises(CheckpointError, match="No space left on device; free some space"):
            export_gguf(*built, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="exists already; choose another folder"):
        export_gguf(*built, tmp_path)
