"""salticid convert moe-llava."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from salticid.checkpoints.load import load_config

RECORDED = json.loads((Path(__file__).parents[1] / "goldens" / "moe_llava_keys.json").read_text())


@pytest.fixture
def flags(tmp_path: Path, tiny_model_folder: Path) -> list[Any]:
    """An upstream folder, and where its parts are."""
    source, vision = tmp_path / "source", tmp_path / "vision"
    for folder, values in ((source, RECORDED["qwen"]["config"]["moe"]), (vision, RECORDED["tower"])):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(values))
    torch.save({name: torch.ones(shape) for name, shape in RECORDED["qwen"]["moe"].items()}, source / "pytorch_model.bin")
    return [source, "--vision", vision, "--tokenizer", tiny_model_folder]


def test_there_and_back(run: Any, flags: list[Any], tmp_path: Path) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    result = run("convert", "moe-llava", *flags, "--out", ours)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{ours}\nqwen2, 4 experts in 2 layers, routing deepspeed, 56 px, template moe_llava\n"
    assert run("convert", "moe-llava", ours, "--to-upstream", "--out", back).out == f"{back}\n"
    assert torch.load(back / "pytorch_model.bin").keys() == RECORDED["qwen"]["moe"].keys()


def test_dropless_by_one_flag(run: Any, flags: list[Any], tmp_path: Path) -> None:
    assert run("convert", "moe-llava", *flags, "--routing", "dropless", "--out", tmp_path / "ours").code == 0
    assert load_config(tmp_path / "ours").experts["routing"] == "dropless"


def test_bad_input(run: Any, one_clear_line: Any, flags: list[Any], tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    one_clear_line(run("convert", "moe-llava", tmp_path / "nowhere", "--out", ours), 4, "no config.json")
    one_clear_line(run("convert", "moe-llava", *flags[:1], *flags[3:], "--out", ours), 4, "--vision")
    one_clear_line(run("convert", "moe-llava", *flags[:3], "--out", ours), 4, "--tokenizer")
    one_clear_line(run("convert", "moe-llava", flags[4], "--out", ours), 4, "none of MoE-LLaVA's")
    one_clear_line(run("convert", "moe-llava", *flags, "--routing", "random", "--out", ours), 4, "Unknown routing 'random'")
    one_clear_line(run("convert", "moe-llava", *flags, "--to-upstream", "--out", ours), 2, "leave out --vision")
    weights = flags[0] / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-100])
    one_clear_line(run("convert", "moe-llava", *flags, "--out", ours), 4, "truncated, damaged")
    assert not ours.exists()
