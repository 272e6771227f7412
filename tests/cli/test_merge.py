"""salticid merge: what comes out is the sum that was asked for, and what cannot be added up is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from salticid.checkpoints.load import load_model, load_processor
from salticid.models import VisionLanguageModel


@pytest.fixture
def other_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model after some training, so to speak."""
    model, folder = load_model(tiny_model_folder), tmp_path / "other"
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return save(model, tiny_model_folder, folder)


def save(model: VisionLanguageModel, like: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    load_processor(like).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("flags", "first"), [([], 0.5), (["--shares=0.75,0.25"], 0.75), (["--shares=1.5,-0.5"], 1.5)])
def test_weights_are_added_up(
    run: Any, tiny_model_folder: Path, other_folder: Path, tmp_path: Path, flags: list[str], first: float
) -> None:
    out = tmp_path / "merged"
    result = run("merge", tiny_model_folder, other_folder, *flags, "--out", out)
    assert (result.code, result.out, result.err) == (0, f"{out}\n", "")
    one, two, merged = (load_file(folder / "model.safetensors") for folder in (tiny_model_folder, other_folder, out))
    assert one.keys() == merged.keys()
    for name, weight in merged.items():
        if weight.is_floating_point():
            assert not torch.equal(one[name], two[name]) or "running" in name
            assert_close(weight, first * one[name] + (1 - first) * two[name], rtol=1e-5, atol=1e-6, msg=name)
        else:
            assert torch.equal(weight, one[name])
    load_model(out)
    assert load_processor(out).image_tokens == load_processor(tiny_model_folder).image_tokens


def test_three_models_and_small_weights(run: Any, tiny_model_folder: Path, other_folder: Path, tmp_path: Path) -> None:
    small, out = tmp_path / "small", tmp_path / "merged"
    assert run("quantize", tiny_model_folder, "--out", small).code == 0
    assert run("merge", small, other_folder, other_folder, "--out", out).code == 0
    name = "connector.layers.0.weight"
    one, two, merged = (load_file(folder / "model.safetensors")[name] for folder in (tiny_model_folder, other_folder, out))
    assert_close(merged, one / 3 + two * 2 / 3, rtol=0, atol=float(one.abs().max()) / 127)


@pytest.mark.parametrize(
    ("models", "flags", "says"),
    [
        (1, [], "one model alone is no merge"),
        (2, ["--shares=1"], "1 shares for 2 models"),
        (2, ["--shares=0.5,0.6"], "come to 1.1; they must come to 1"),
        (2, ["--shares=half,half"], "--shares is 'half,half'; give numbers with commas"),
        (2, ["--shares=nan,1"], "they must come to 1"),
    ],
)
def test_bad_shares(
    run: Any, one_clear_line: Any, tiny_model_folder: Path, tmp_path: Path, models: int, flags: list[str], says: str
) -> None:
    one_clear_line(run("merge", *[tiny_model_folder] * models, *flags, "--out", tmp_path / "merged"), 2, says)
    assert list(tmp_path.iterdir()) == []


def test_models_of_other_sizes_are_refused(run: Any, one_clear_line: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    sparse, out = tmp_path / "sparse", tmp_path / "merged"
    assert run("upcycle", tiny_model_folder, "--experts", 2, "--layers", "all", "--out", sparse).code == 0
    one_clear_line(run("merge", tiny_model_folder, sparse, "--out", out), 2, "do not fit")
    assert [path.name for path in tmp_path.iterdir()] == ["sparse"]


def test_other_words_are_refused(run: Any, one_clear_line: Any, tiny_model_folder: Path, other_folder: Path, tmp_path: Path) -> None:
    words = json.loads((other_folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other_folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    one_clear_line(run("merge", tiny_model_folder, other_folder, "--out", tmp_path / "merged"), 2, "other words")


def test_a_folder_that_exists_is_left_alone(
    run: Any, one_clear_line: Any, tiny_model_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    before = sorted(other_folder.iterdir())
    one_clear_line(run("merge", tiny_model_folder, other_folder, "--out", other_folder), 4, "exists already")
    assert sorted(other_folder.iterdir()) == before
