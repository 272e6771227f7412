"""Items of a mixture, their photos opened: each depends on the seed and its number alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from salticid.data.conversation import Example, Turn
from salticid.errors import ConfigurationError, DataError
from salticid.train.data import EMPTY_DRAWS, TrainingData, build_sources
from salticid.train.recipe import StageRecipe


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


def test_unknown_kinds_and_options_are_named(stage_recipe: Callable[..., StageRecipe]) -> None:
    with pytest.raises(ConfigurationError, match="unknown data set kind 'flickr'; known: flickr8k, daquar, coco"):
        build_sources(stage_recipe(data__sources=[{"kind": "flickr", "path": "flickr8k"}]).data)
    with pytest.raises(ConfigurationError, match=r"data set 'daquar': .*caption"):
        build_sources(stage_recipe(data__sources=[{"kind": "daquar", "path": "daquar", "options": {"caption": 1}}]).data)
    with pytest.raises(DataError, match="no folder"):
        build_sources(stage_recipe(data__sources=[{"kind": "daquar", "path": "elsewhere"}]).data)


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
    data.mixture = Mute({3, 7})  # type: ignore[assignment]
    assert [data[index].conversations[0][0].answer for index in (0, 3, 4, 7)] == ["3", "3", "7", "7"]
    data.mixture = Mute(set())  # type: ignore[assignment]
    with pytest.raises(DataError, match=f"{EMPTY_DRAWS} photos in a row gave neither captions nor questions"):
        data[0]
