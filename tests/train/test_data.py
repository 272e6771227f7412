"""Items of a mixture, their photos opened: each depends on the seed and its number alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from salticid.checkpoints.load import load_processor
from salticid.data.collate import Collator
from salticid.data.conversation import Example, Turn
from salticid.data.templates import get_template
from salticid.errors import ConfigurationError, DataError
from salticid.train.data import EMPTY_DRAWS, TrainingData, build_sources
from salticid.train.recipe import StageRecipe
from salticid.train.stage import run_stage
from salticid.train.tally import Tally


def key(example: Example) -> tuple[Any, ...]:
    return example.conversations, [image.tobytes() for image in example.images]


def test_items_are_opened_and_repeat_by_their_number(stage_recipe: Callable[..., StageRecipe]) -> None:
    recipe = stage_recipe()
    data, again, other = (TrainingData(recipe.data, length=12, seed=seed) for seed in (5, 5, 6))
    assert len(data) == 12
    assert all(isinstance(image, Image.Image) for index in range(12) for image in data[index].images)
    later = [key(again[index]) for index in reversed(range(12))]
    assert [key(data[index]) for index in range(12)] == later[::-1]
    assert [key(data[index]) for index in range(12)] != [key(other[index]) for index in range(12)]


def test_photos_are_shown_through_the_window_that_their_words_are_about(stage_recipe: Callable[..., StageRecipe]) -> None:
    options = {"reader": "coco", "window": 0.5}
    data = stage_recipe(data__sources=[{"kind": "photo_tasks", "path": "coco", "options": options}]).data
    training = TrainingData(data, length=6, seed=0)
    for item in range(6):
        drawn, shown = training.mixture[item], training[item]
        assert drawn.view is not None
        with Image.open(drawn.images[0]) as whole:
            assert shown.images[0].size == drawn.view.of_image(whole).size != whole.size


def test_unknown_kinds_and_options_are_named(stage_recipe: Callable[..., StageRecipe]) -> None:
    with pytest.raises(ConfigurationError, match="unknown data set kind 'flickr'; known: flickr8k, daquar, coco"):
        build_sources(stage_recipe(data__sources=[{"kind": "flickr", "path": "flickr8k"}]).data)
    with pytest.raises(ConfigurationError, match=r"data set 'daquar': .*caption"):
        build_sources(stage_recipe(data__sources=[{"kind": "daquar", "path": "daquar", "options": {"caption": 1}}]).data)
    with pytest.raises(DataError, match="no folder"):
        build_sources(stage_recipe(data__sources=[{"kind": "daquar", "path": "elsewhere"}]).data)


def test_stages_can_learn_from_photos_that_others_never_saw(stage_recipe: Callable[..., StageRecipe]) -> None:
    def sources(*part: float) -> list[dict[str, Any]]:
        return [{"kind": "flickr8k", "path": "flickr8k"} | ({"part": part} if part else {})]

    (everything,) = build_sources(stage_recipe(data__sources=sources()).data)
    seen = []
    for part in ((0, 0.5), (0.5, 1)):
        training = TrainingData(stage_recipe(data__sources=sources(*part)).data, length=3 * len(everything), seed=0)
        seen.append({training.mixture[item].images for item in range(len(training))})
    assert all(seen)
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {everything.example(index, 0).images for index in range(len(everything))}
    with pytest.raises(ConfigurationError, match=r"part \[0\.6, 0\.5\] is none of a data set"):
        build_sources(stage_recipe(data__sources=sources(0.6, 0.5)).data)


class Mute:
    """Photos of which only some give rise to a conversation."""

    def __init__(self, speaking: set[int]) -> None:
        self.speaking = speaking

    def __getitem__(self, item: int) -> Example:
        turns = ((Turn("What?", str(item)),),) if item in self.speaking else ()
        return Example((Image.new("RGB", (4, 4)),), turns)

    def __len__(self) -> int:
        return EMPTY_DRAWS + 10


def test_photos_without_a_word_are_passed_over(stage_recipe: Callable[..., StageRecipe]) -> None:
    data = TrainingData(stage_recipe().data, length=5, seed=0)
    data.mixture, data.order = Mute({3, 7}), range(EMPTY_DRAWS + 10)
    assert [data[index].conversations[0][0].answer for index in (0, 3, 4, 7)] == ["3", "3", "7", "7"]
    data.mixture = Mute(set())
    with pytest.raises(DataError, match=f"{EMPTY_DRAWS} photos in a row gave neither captions nor questions"):
        data[0]


@pytest.fixture
def spoiled(data_folder: Path, tmp_path: Path) -> Path:
    """The miniature data with one photo of Flickr8k that is no photo and one that is cut short."""
    folder = tmp_path / "spoiled"
    shutil.copytree(data_folder, folder)
    images = folder / "flickr8k/images"
    (images / f"{20:012d}.png").write_bytes(b"no photo")
    whole = (images / f"{30:012d}.png").read_bytes()
    (images / f"{30:012d}.png").write_bytes(whole[: len(whole) // 2])
    return folder


def only_flickr8k(stage_recipe: Callable[..., StageRecipe], folder: Path, **changes: Any) -> StageRecipe:
    sources = [{"kind": "flickr8k", "path": "flickr8k", "options": {"captions": 1, "questions": 1}}]
    return stage_recipe(data__folder=folder, data__sources=sources, **changes)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_photos_are_passed_over_and_counted(stage_recipe: Callable[..., StageRecipe], spoiled: Path, workers: int) -> None:
    schedule = {"epochs": 1, "batch_size": 26}
    recipe = only_flickr8k(stage_recipe, spoiled, schedule=schedule, data__workers=workers, data__max_unreadable=2)
    told = json.loads((run_stage(recipe) / "training.json").read_text())
    assert (told["unreadable_photos"], told["steps"], told["examples"]) == (2, 2, 52)


def test_more_unreadable_photos_than_may_be_stop_the_run(stage_recipe: Callable[..., StageRecipe], spoiled: Path) -> None:
    recipe = only_flickr8k(stage_recipe, spoiled, data__max_unreadable=1)
    data = TrainingData(recipe.data, None, seed=0)
    with pytest.raises(
        DataError, match=r"2 photos could not be read, 1 may be \(data.max_unreadable\); the last: .*0000000000[23]0.png"
    ) as told:
        [data[index] for index in range(len(data))]
    assert "\n" not in str(told.value)


def test_conversations_that_are_too_long_are_counted(stage_recipe: Callable[..., StageRecipe], tiny_model_folder: Path) -> None:
    long, short = (Turn("What?", "word " * 80),), (Turn("What?", "yes"),)
    collate = Collator(load_processor(tiny_model_folder), get_template("nano"), max_length=60)
    photo = (Image.new("RGB", (4, 4)),)
    data = TrainingData(stage_recipe().data, length=3, seed=0, tally=Tally(0), collate=collate)
    data.mixture, data.order = [Example(photo, (long, short)), Example(photo, (long,)), Example(photo, (short,))], range(3)
    assert data[0].conversations == (long, short)
    assert data[1].conversations == (short,)
    assert data.tally.counts == {"unreadable_photos": 0, "conversations_left_out": 2, "examples_left_out": 1}
    data.order = [1]
    with pytest.raises(DataError, match=r"are of no use: no conversation of .* fits"):
        data[0]
