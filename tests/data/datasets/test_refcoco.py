"""The published lists of phrases are pickles, which may run programs; ours are read as plain data."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salticid.data.datasets.plain_pickle import read_plain_pickle
from salticid.data.datasets.refcoco import RefCoco
from salticid.errors import DataError

PLAIN = [{"ref_id": 1, "split": "train", "box": (1, 2.5, None, True), "raw": "köstlich"}, {3, 4}, b"bytes", 10**30]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(4, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    assert read_plain_pickle(tmp_path / "refs.p") == PLAIN


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lists_and_mappings_of_every_age_are_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps(PLAIN[:1], protocol=protocol))
    assert read_plain_pickle(tmp_path / "refs.p") == PLAIN[:1]


def test_texts_of_python_2_are_read(tmp_path: Path) -> None:
    # What Python 2 writes of {"raw": "dog", "split": u"train"}: one text of bytes, one of characters.
    (tmp_path / "refs.p").write_bytes(b"(dp0\nS'raw'\np1\nS'dog'\np2\nsS'split'\np3\nVtrain\np4\ns.")
    assert read_plain_pickle(tmp_path / "refs.p") == {"raw": "dog", "split": "train"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_program_is_refused(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "refs.p").write_bytes(pickle.dumps([{"raw": "dog"}, Evil(marker)], protocol=protocol))
    with pytest.raises(DataError, match=r"refs\.p is no pickle of plain lists .*mkdir"):
        read_plain_pickle(tmp_path / "refs.p")
    assert not marker.exists()
    pickle.loads((tmp_path / "refs.p").read_bytes())
    assert marker.exists()  # it would have


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(PLAIN)[:-9], b"cos\nsystem\n(S'true'\ntR.", b"Pabc\n."])
def test_damaged_pickles_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError, match=r"refs\.p is no pickle of plain lists"):
        read_plain_pickle(tmp_path / "refs.p")


def test_a_missing_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"refs\.p cannot be read .*option 'refs'"):
        read_plain_pickle(tmp_path / "refs.p")


def test_phrases_in_json_and_other_splits(publish: Callable[..., Path], published: Any) -> None:
    folder = publish("refcoco")
    (folder / "refs.json").write_text(json.dumps(published["refcoco"].beside["refs(unc).p"]))
    from_json, from_pickle = RefCoco(folder, refs="refs.json"), RefCoco(folder)
    assert from_json.example(0, 0) == from_pickle.example(0, 0)
    assert RefCoco(folder, split="val").example(0, 0).conversations[0][0].question.endswith("dog")
    with pytest.raises(DataError, match="no rows that can be used"):
        RefCoco(folder, split="testA")


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("dog", r"Row 0 of .*refs\.json is no mapping"),
        ({"ann_id": 5, "image_id": 9, "split": "train"}, "lacks 'sentences'"),
        ({"ann_id": 6, "image_id": 9, "split": "train", "sentences": []}, "speaks of object 6, which .* lacks"),
        ({"ann_id": 5, "image_id": 8, "split": "train", "sentences": []}, "speaks of photo 8, which .* lacks"),
        ({"ann_id": 5, "image_id": 9, "split": "train", "sentences": []}, "of object 5 holds no phrase"),
        ({"ann_id": 5, "image_id": 9, "split": "train", "sentences": [{"raw": 3}]}, "of object 5 holds no phrase"),
    ],
)
def test_malformed_phrases_are_named(publish: Callable[..., Path], ref: Any, says: str) -> None:
    folder = publish("refcoco")
    (folder / "refs.json").write_text(json.dumps([ref]))
    with pytest.raises(DataError, match=says):
        RefCoco(folder, refs="refs.json")
