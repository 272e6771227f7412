from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from salticid.checkpoints.load import load_model
from salticid.engine.load import choose_device, choose_dtype, load
from salticid.errors import CheckpointError, InputError, ModelNotFoundError
from salticid.quant import Int4Linear, Int8Linear, quantize_model

CPU = torch.device("cpu")
SMALL = torch.bfloat16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else torch.float32


@pytest.fixture(scope="module")
def int8_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "model"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "model.safetensors").unlink()
    quantize_model(load_model(tiny_model_folder)).save_pretrained(folder)
    return folder


def head(folder: Path, precision: str) -> tuple[type, torch.dtype]:
    model = load(folder, precision, "cpu").model
    layer = model.language_model.base_model.layers[0].self_attn.q_proj
    scale = {Int8Linear: "scale", Int4Linear: "scale_zero"}.get(type(layer), "weight")
    return type(layer), layer.get_parameter(scale).dtype


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("auto", (torch.nn.Linear, torch.float32)),
        ("fp32", (torch.nn.Linear, torch.float32)),
        ("bf16", (torch.nn.Linear, torch.bfloat16)),
        ("int8", (Int8Linear, SMALL)),
        ("int4", (Int4Linear, SMALL)),
    ],
)
def test_precision_of_a_folder_with_full_weights(tiny_model_folder: Path, precision: str, expected: tuple[type, torch.dtype]) -> None:
    assert head(tiny_model_folder, precision) == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("auto", (Int8Linear, SMALL)),
        ("int8", (Int8Linear, SMALL)),
        ("fp32", (torch.nn.Linear, torch.float32)),
        ("bf16", (torch.nn.Linear, torch.bfloat16)),
    ],
)
def test_precision_of_a_folder_with_small_weights(int8_folder: Path, precision: str, expected: tuple[type, torch.dtype]) -> None:
    assert head(int8_folder, precision) == expected


def test_every_precision_answers(tiny_model_folder: Path, int8_folder: Path) -> None:
    photo = np.zeros((20, 20, 3), dtype=np.uint8)
    for folder in (tiny_model_folder, int8_folder):
        for precision in ("auto", "fp32", "bf16", "int8"):
            assert load(folder, precision, "cpu").ask(photo, "What?", max_new_tokens=4)


def test_other_bits_than_the_folder_has(int8_folder: Path) -> None:
    with pytest.raises(InputError, match="have 8 bits; for int4 give a folder with the original weights"):
        load(int8_folder, "int4")


def test_choices() -> None:
    assert choose_dtype("auto", torch.device("cuda"), small=True) == torch.bfloat16
    assert choose_dtype("auto", CPU, small=False) == torch.float32
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cuda", "mps", "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(InputError, match=r"known: auto, cpu|this machine has no device"):
        choose_device(device)


def test_unknown_precision(tiny_model_folder: Path) -> None:
    with pytest.raises(InputError, match="unknown precision 'fp8'; known: auto, fp32, bf16, int8, int4"):
        load(tiny_model_folder, precision="fp8")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"a model folder holds config\.json"):
        load(tmp_path)


def test_a_folder_without_weights(tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load(tmp_path)


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="'llama' model, not a Salticid one"):
        load(tmp_path)
