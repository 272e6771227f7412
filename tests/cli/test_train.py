from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic", reason="needs the extra 'train'")

from salticid.cli import extras
from salticid.train import assemble, stage

STAGE = """\
name: test
model: somewhere
output: trained
train: {connector: {learning_rate: 1.0e-3}}
data: {sources: [{kind: flickr8k, path: flickr8k}]}
schedule: {steps: 5, batch_size: 2}
"""
PARTS = """\
output: parts
vision: {model_type: efficientnet_lite}
vision_weights: lite0.pth
language: words.gguf
image: efficientnet_lite
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "stage.yaml"
    path.write_text(STAGE)
    return path


def test_train_runs_the_recipe_with_its_overrides(run: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, Path, bool, bool]] = []

    def record(stage_recipe: Any, resume: bool, accept_changes: bool) -> Path:
        ran.append((stage_recipe.schedule.steps, stage_recipe.data.folder, resume, accept_changes))
        return Path(stage_recipe.output)

    monkeypatch.setattr(stage, "run_stage", record)
    assert run("train", recipe, "schedule.steps=7", "data.folder=/photos") == (0, "trained\n", "")
    assert run("train", recipe, "--no-resume").code == 0
    assert run("train", recipe, "--restart").code == 0
    assert run("train", recipe, "--accept-changes").code == 0
    data = Path("data")
    assert ran == [(7, Path("/photos"), True, False), (5, data, False, False), (5, data, False, False), (5, data, True, True)]


def test_assemble_runs_the_recipe(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "parts.yaml"
    path.write_text(PARTS)
    monkeypatch.setattr(assemble, "run_assemble", lambda parts: parts.output / parts.language)
    assert run("assemble", path, "language=other.gguf") == (0, "parts/other.gguf\n", "")


def test_bad_recipes_are_one_line(run: Any, one_clear_line: Any, recipe: Path, tmp_path: Path) -> None:
    one_clear_line(run("train", tmp_path / "none.yaml"), 2, "no recipe at")
    one_clear_line(run("train", recipe, "schedule.stepps=7"), 2, "stepps")
    one_clear_line(run("train", recipe), 3, "no model 'somewhere'")


@pytest.mark.parametrize(("verb", "module"), [("train", "pydantic"), ("train", "accelerate"), ("assemble", "yaml")])
def test_missing_extras_are_named(
    run: Any, one_clear_line: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch, verb: str, module: str
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == module else object())
    one_clear_line(run(verb, recipe), 6, f"this command needs {module}, not installed here; run: pip install 'salticid[train]'")
