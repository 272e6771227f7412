"""A folder holds the old model, none, or the new one, never half of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from salticid.errors import CheckpointError
from salticid.train.publish import publishing

FILES = ("config.json", "model.safetensors", "tokenizer.json")


def write(folder: Path, content: str) -> None:
    for name in FILES:
        (folder / name).write_text(content)


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    write(tmp_path, "old")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("old")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "state").write_text("kept")
    return tmp_path


def test_a_new_model_takes_the_place_of_an_old_one(old: Path) -> None:
    with publishing(old) as folder:
        write(folder, "new")
        assert read(old)["config.json"] == "old"
    assert read(old) == dict.fromkeys(FILES, "new")
    assert sorted(path.name for path in old.iterdir() if path.is_dir()) == ["checkpoints"]
    assert (old / "checkpoints" / "state").read_text() == "kept"


def test_a_failure_while_writing_leaves_the_old_one(old: Path) -> None:
    before = read(old)

    def fail() -> None:
        with publishing(old) as folder:
            write(folder, "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read(old) == before
    assert not (old / "unfinished").exists()


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_a_kill_between_two_files_leaves_no_model(old: Path, moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`config.json` is away before the first file is changed, and comes when all others are there."""
    replace, count = Path.replace, 0

    def killed(path: Path, target: Path) -> Path:
        nonlocal count
        assert not (old / "config.json").exists()
        if count == moved:
            raise SystemExit
        count += 1
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)

    def publish() -> None:
        with publishing(old) as folder:
            write(folder, "new")

    with pytest.raises(SystemExit):
        publish()
    monkeypatch.undo()
    assert "config.json" not in read(old)
    with publishing(old) as folder:  # the next attempt finishes
        write(folder, "newer")
    assert read(old) == dict.fromkeys(FILES, "newer")


def test_what_a_killed_run_left_behind_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "junk.bin").write_text("half")
    with publishing(tmp_path) as folder:
        write(folder, "new")
    assert set(read(tmp_path)) == set(FILES)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    def publish() -> None:
        with publishing(tmp_path / "file"):
            pass

    with pytest.raises(CheckpointError, match=r"cannot write .*file"):
        publish()


def test_adapters_of_an_older_model_go_with_it(old: Path) -> None:
    (old / "lora").mkdir()
    (old / "lora/adapter_config.json").write_text("old")
    with publishing(old) as folder:
        write(folder, "new")
    assert not (old / "lora").exists()
    with publishing(old) as folder:
        write(folder, "newer")
        (folder / "lora").mkdir()
        (folder / "lora/adapter_config.json").write_text("newer")
    with publishing(old) as folder:
        write(folder, "newest")
        (folder / "lora").mkdir()
        (folder / "lora/adapter_config.json").write_text("newest")
    assert (old / "lora/adapter_config.json").read_text() == "newest"
