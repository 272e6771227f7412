"""A model folder that is missing, foreign, cut short or of other sizes is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salticid.checkpoints.load import load_config, load_model, load_processor
from salticid.errors import CheckpointError, ModelNotFoundError, SalticidError


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_a_whole_folder(tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(tiny_model_folder)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    saved = load_file(tiny_model_folder / "model.safetensors")
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in saved.items())
    half = load_model(tiny_model_folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert load_processor(tiny_model_folder).image_tokens == load_config(tiny_model_folder).image_tokens
    assert "You are using a model of type" not in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "{}", '{"model_type": "nope"}', '{"model_type": "llama"}'])
def test_a_configuration_of_something_else(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as raised:
        load_config(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_a_configuration_that_does_not_fit_itself(folder: Path) -> None:
    for values in ({"image_token_id": 9999}, {"shuffle": 3}, {"connector_config": {"depth": 0}}):
        original = (folder / "config.json").read_text()
        change(folder, **values)
        with pytest.raises(SalticidError) as raised:
            load_model(folder)
        assert "\n" not in str(raised.value)
        (folder / "config.json").write_text(original)


def test_no_folder_and_no_weights(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model in .*nowhere"):
        load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors; copy the weights there"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 7, 1000, -10])
def test_weights_cut_short(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged") as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


def test_weights_that_are_missing_unexpected_or_of_another_size(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "connector.layers.0.weight"

    def write(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, path, metadata={"format": "pt"})

    write({key: weight for key, weight in weights.items() if key != name})
    with pytest.raises(CheckpointError, match=rf"1 missing \({name}\)"):
        load_model(folder)
    write({**weights, "connector.layers.7.weight": torch.zeros(1), "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"2 unexpected \(connector.layers.7.weight, extra\)"):
        load_model(folder)
    write({**weights, name: weights[name][:, :-1].contiguous()})
    with pytest.raises(CheckpointError) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_processor_without_its_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="lacks its processor files") as raised:
        load_processor(folder)
    assert "\n" not in str(raised.value)
