"""Photos with pasted cut-outs, and questions about what is pasted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from salticid.data.datasets.flickr8k_scenes import Flickr8kScenes
from salticid.data.scenes import Scene
from salticid.errors import ConfigurationError

NAMES = ("unicorn", "teapot", "anchor", "violin", "dog", "beach")


@pytest.fixture
def cutouts(tmp_path: Path) -> str:
    for name in NAMES:
        Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    return str(tmp_path)


def pasted(scene: object) -> set[str]:
    assert isinstance(scene, Scene)
    return {each.box.category for each in scene.pasted}


def test_what_is_asked_for_is_there_as_often_as_not(data_folder: Path, cutouts: str) -> None:
    source = Flickr8kScenes(data_folder / "flickr8k", cutouts, questions=8)
    answers: Counter[tuple[str, str]] = Counter()
    for index in range(len(source)):
        for seed in range(6):
            example = source.example(index, seed)
            shown = pasted(example.view)
            assert example == source.example(index, seed)
            for turn in (turn for turns in example.conversations for turn in turns):
                named = [name for name in NAMES if name in turn.question]
                if len(named) == 1 and turn.answer in ("yes", "no"):
                    answers[named[0], turn.answer] += 1
                    assert (named[0] in shown) == (turn.answer == "yes"), turn
    for name in NAMES[:4]:
        assert answers[name, "yes"] > 20
        assert 0.35 < answers[name, "yes"] / (answers[name, "yes"] + answers[name, "no"]) < 0.65, name


def test_what_captions_name_is_neither_pasted_nor_denied(data_folder: Path, cutouts: str) -> None:
    source = Flickr8kScenes(data_folder / "flickr8k", cutouts)  # each caption has a dog and a beach
    for index in range(len(source)):
        example = source.example(index, 0)
        assert example.view is not None
        assert not pasted(example.view) & {"dog", "beach"}
        assert not [turn for turns in example.conversations for turn in turns if "dog" in turn.question or "beach" in turn.question]


def test_sides_and_positions_are_asked_for_too(data_folder: Path, cutouts: str) -> None:
    source = Flickr8kScenes(data_folder / "flickr8k", cutouts, questions=12)
    turns = {turn for index in range(len(source)) for talk in source.example(index, 1).conversations for turn in talk}
    assert {turn.answer for turn in turns} == {"yes", "no", "in the middle", "on the left", "on the right"}
    assert any(sum(name in turn.question for name in NAMES) == 2 for turn in turns)


def test_one_or_more_are_pasted(data_folder: Path, cutouts: str) -> None:
    with pytest.raises(ConfigurationError, match="most is 0; it is how many cut-outs"):
        Flickr8kScenes(data_folder / "flickr8k", cutouts, most=0)
    alone = Flickr8kScenes(data_folder / "flickr8k", cutouts, most=1)
    assert {len(pasted(alone.example(index, 0).view)) for index in range(len(alone))} == {1}
