"""salticid phrases, as users call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_a_model_gets_phrases(
    run: Any, one_clear_line: Any, data_folder: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from salticid.checkpoints.load import load_model
    from salticid.train import phrases

    arguments = ("phrases", tiny_model_folder, data_folder / "flickr8k", "--out", tmp_path / "with")
    with monkeypatch.context() as patch:
        patch.setattr(phrases, "LEAST", 1000)
        result = run(*arguments)
        assert (result.code, result.out) == (5, "")
        assert result.err.splitlines()[-1].endswith("more photos are needed"), "after the progress of looking"
    assert not (tmp_path / "with").exists()
    result = run(*arguments)
    assert (result.code, result.out) == (0, f"{tmp_path / 'with'}\n")
    assert load_model(tmp_path / "with").phrases is not None
    one_clear_line(run(*arguments), 4, "exists already")
    one_clear_line(run("phrases", tmp_path, data_folder / "flickr8k", "--out", tmp_path / "new"), 3, "no model in")
    one_clear_line(run("phrases", tiny_model_folder, data_folder / "daquar", "--out", tmp_path / "new"), 5, "train.json")
