"""Epochs that show everything once, and steps that keep photos and text apart."""

from __future__ import annotations

from typing import Any

import pytest

from salticid.data.conversation import Example, Turn
from salticid.errors import ConfigurationError
from salticid.train.data import TrainingData
from salticid.train.order import Epochs, group_by_modality_length, words


class Numbered:
    """`size` examples that name themselves; every third is text alone."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def example(self, index: int, seed: int) -> Example:
        images = () if index % 3 == 0 else ("photo",)
        return Example(images, ((Turn("Which one is it?", " ".join([f"{self.name}{index}"] * (1 + index % 5))),),))


def names(epochs: Epochs, items: range) -> list[str]:
    return [epochs[item].conversations[0][0].answer.split()[0] for item in items]


def test_an_epoch_shows_every_example_once_in_an_order_of_its_own() -> None:
    epochs = Epochs([Numbered("a", 7), Numbered("b", 4)], epochs=2, seed=5)
    assert len(epochs) == 22
    everything = {f"a{index}" for index in range(7)} | {f"b{index}" for index in range(4)}
    first, second = names(epochs, range(11)), names(epochs, range(11, 22))
    assert set(first) == set(second) == everything
    assert first != second
    again = Epochs([Numbered("a", 7), Numbered("b", 4)], epochs=2, seed=5)
    assert names(again, range(11)) == first
    assert names(Epochs(again.sources, epochs=2, seed=6), range(11)) != first
    assert len(Epochs(again.sources, epochs=0.5, seed=5)) == 6
    with pytest.raises(IndexError):
        epochs[22]
    with pytest.raises(ConfigurationError, match="no examples"):
        Epochs([Numbered("a", 0)], epochs=1, seed=0)


def test_steps_hold_photos_alone_or_text_alone() -> None:
    lengths, photos = [(7 * index) % 13 for index in range(50)], [index % 3 != 0 for index in range(50)]
    order = group_by_modality_length(lengths, photos, step=4, seed=1)
    assert sorted(order) == list(range(50))
    steps = [order[start : start + 4] for start in range(0, 50, 4)]
    with_photos = photos.count(True) // 4
    text = photos.count(False) // 4
    whole = steps[: with_photos + text]
    assert all(len({photos[index] for index in step}) == 1 for step in whole)
    assert sum(photos[step[0]] for step in whole) == with_photos
    assert all([lengths[index] for index in step] == sorted((lengths[index] for index in step), reverse=True) for step in whole)
    kinds = [photos[step[0]] for step in whole]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)
    assert group_by_modality_length(lengths, photos, step=4, seed=1) == order
    assert group_by_modality_length(lengths, photos, step=4, seed=2) != order


def test_one_kind_alone_is_grouped_too() -> None:
    order = group_by_modality_length([3, 1, 2, 5, 4], [True] * 5, step=2, seed=0)
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_training_data_are_grouped_epoch_by_epoch(stage_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salticid.train.data.build_sources", lambda recipe: [Numbered("a", 24)])
    monkeypatch.setattr("salticid.train.data.read_photo", lambda image: pytest.fail("a photo was opened"))
    one = [{"kind": "daquar", "path": "daquar"}]
    recipe = stage_recipe(data__sources=one, data__group_by_modality_length=True)
    data = TrainingData(recipe.data, None, seed=3, epochs=2, step=4)
    assert len(data) == 48
    assert sorted(data.order[:24]) == list(range(24))
    steps = [[bool(data.mixture[item].images) for item in data.order[start : start + 4]] for start in range(0, 24, 4)]
    assert all(len(set(step)) == 1 for step in steps)
    assert data.order[24:] != [24 + item for item in data.order[:24]]
    assert words(data.mixture[0]) >= 5


def test_weights_have_no_meaning_in_an_epoch(stage_recipe: Any) -> None:
    with pytest.raises(ConfigurationError, match="whatever its weight"):
        TrainingData(stage_recipe().data, None, seed=0)
