"""Weights in every form that upstream writes, and new folders that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salticid.checkpoints.save import new_folder
from salticid.checkpoints.weights import read_weights, write_weights
from salticid.errors import CheckpointError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(1, 2)}


def write_upstream(folder: Path, form: str) -> None:
    suffix, _, shards = form.partition(" ")
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    parts = {f"{stem}.{suffix}": TENSORS}
    if shards:
        parts = {f"{stem}-{index:05}-of-00003.{suffix}": {name: TENSORS[name]} for index, name in enumerate(TENSORS, 1)}
        where = {name: file for file, part in parts.items() for name in part}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    for file, part in parts.items():
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)


@pytest.mark.parametrize("form", ["bin", "bin shards", "safetensors", "safetensors shards"])
def test_every_form_is_read(tmp_path: Path, form: str) -> None:
    write_upstream(tmp_path, form)
    found = read_weights(tmp_path)
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_the_old_bin_format_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path)["a"], TENSORS["a"])


@pytest.mark.parametrize("form", ["bin", "safetensors", "bin shards", "safetensors shards"])
def test_a_truncated_file_is_one_line(tmp_path: Path, form: str) -> None:
    write_upstream(tmp_path, form)
    file = sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")[-1]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="truncated, damaged"):
        read_weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_upstream(tmp_path, "bin shards")
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00003\.bin is missing"):
        read_weights(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights in"):
        read_weights(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("evil"),))


def test_code_in_a_bin_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_weights(tmp_path)


def test_a_training_state_is_no_model(tmp_path: Path) -> None:
    torch.save({"module": TENSORS, "epoch": 1}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no plain dictionary of tensors"):
        read_weights(tmp_path)


@pytest.mark.parametrize(("limit", "files"), [(10**6, 1), (25, 2), (1, 3)])
def test_what_is_written_is_read_again(tmp_path: Path, limit: int, files: int) -> None:
    write_weights(tmp_path, TENSORS, iter(TENSORS.items()), limit)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / "model.safetensors.index.json").exists() == (files > 1)
    found = read_weights(tmp_path)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    for file in tmp_path.glob("*.safetensors"):
        assert load_file(file)


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "new" / "model") as folder:  # noqa: PT012
        (folder / "half").write_text("x")
        raise ValueError("stop")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_new_folder_is_readable_and_never_overwrites(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()  # an empty one is taken
    with new_folder(out) as folder:
        (folder / "whole").write_text("x")
        assert list(out.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "whole").read_text() == "x"
    assert out.stat().st_mode & 0o777 == 0o755
    with pytest.raises(CheckpointError, match="exists already"), new_folder(out):
        pass
