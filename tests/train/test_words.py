"""A tower learns the words of captions: from recipe to a folder that other recipes take as vision weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

pytest.importorskip("pydantic", reason="needs the extra 'train'")
pytest.importorskip("accelerate", reason="needs the extra 'train'")

from salticid.checkpoints.vision_weights import load_vision
from salticid.errors import ConfigurationError, DataError
from salticid.models import EfficientNetLiteConfig, EfficientNetLiteModel, VisionLanguageConfig
from salticid.models.vision import VisionTower
from salticid.train.kinds import open_recipe
from salticid.train.recipe import PartRecipe
from salticid.train.words import WordNamer, WordsTrainer, named_photos, run_words, split
from salticid.train.words_recipe import WordsRecipe

VISION = {"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 210), "black": (10, 10, 10)}
Build = Callable[..., WordsRecipe]


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four photos of four colours, two captions each that say which."""
    root = tmp_path_factory.mktemp("coloured")
    (root / "flickr8k" / "images").mkdir(parents=True)
    rows = []
    for number in range(24):
        colour = list(COLOURS)[number % 4]
        shade = tuple(min(255, value + number) for value in COLOURS[colour])
        Image.new("RGB", (24, 20), shade).save(root / "flickr8k" / "images" / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": [f"a {colour} wall .", f"the wall is {colour}"]})
    (root / "flickr8k" / "train.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("tower")
    options = {key: value for key, value in VISION.items() if key != "model_type"}
    EfficientNetLiteModel(EfficientNetLiteConfig(**options)).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(coloured: Path, start: Path, tmp_path: Path) -> Build:
    """Six steps of four photos in float32, unless a test says otherwise; keys of parts are `data__crop`."""

    def build(**changes: Any) -> WordsRecipe:
        values: dict[str, Any] = {
            "kind": "words",
            "name": "test",
            "output": tmp_path / "trained",
            "vision": VISION,
            "vision_weights": start,
            "image": "efficientnet_lite",
            "tower": {"learning_rate": 1e-3},
            "head": {"learning_rate": 1e-2},
            "data": {
                "folder": coloured,
                "sources": [{"kind": "flickr8k", "path": "flickr8k"}],
                "at_least": 3,
                "held_out": 8,
                "flip": True,
                "crop": 0.9,
            },
            "schedule": {"steps": 6, "batch_size": 4},
            "mix": 0.5,
            "dropout": 0.1,
            "precision": "fp32",
            "save_steps": 3,
            "log_steps": 1,
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            holder = values
            for parent in parents:
                holder = holder[parent]
            holder[last] = value
        return WordsRecipe.model_validate(values)

    return build


def test_words_of_unseen_photos_are_learned(recipe: Build) -> None:
    made = recipe(schedule={"steps": 40, "batch_size": 8}, mix=0.0, save_steps=100)
    folder = run_words(made)
    report = json.loads((folder / "training.json").read_text())
    assert json.loads((folder / "words.json").read_text())[0] == "wall"
    assert report["photos"] == 16
    assert report["held_out"]["photos"] == 8
    assert report["held_out"]["by_chance"] < 0.8
    assert report["held_out"]["mean_average_precision"] > 0.95
    before = run_words(recipe(output=folder.parent / "untrained", schedule={"steps": 1, "batch_size": 1}, tower={"learning_rate": 1e-9}))
    assert json.loads((before / "training.json").read_text())["held_out"]["loss"] > 2 * report["held_out"]["loss"]


def test_the_folder_serves_as_vision_weights_and_names_words(recipe: Build, start: Path) -> None:
    folder = run_words(recipe())
    config = VisionLanguageConfig(vision_config=VISION)
    tower, untouched = VisionTower(config), VisionTower(config)
    load_vision(tower.model, folder)
    load_vision(untouched.model, start)
    moved = [name for name, value in tower.state_dict().items() if not torch.equal(value, untouched.state_dict()[name])]
    assert any("head" in name for name in moved)
    assert not any("running" in name for name in moved)  # batch norms keep the statistics that they came with
    words = json.loads((folder / "words.json").read_text())
    head = load_file(folder / "words.safetensors")
    assert head["weight"].shape == (len(words), 2 * 1280)
    assert head["bias"].shape == (len(words),)


def test_only_what_is_named_learns(recipe: Build, start: Path) -> None:
    folder = run_words(recipe(tower={"learning_rate": 1e-2, "only": [r"^model\.head\."]}))
    tower, untouched = (VisionTower(VisionLanguageConfig(vision_config=VISION)) for _ in range(2))
    load_vision(tower.model, folder)
    load_vision(untouched.model, start)
    moved = [name for name, value in tower.state_dict().items() if not torch.equal(value, untouched.state_dict()[name])]
    assert moved
    assert all(name.startswith("model.head.") for name in moved)
    with pytest.raises(ConfigurationError, match=r"tower.only: no parameter matches nothing"):
        run_words(recipe(output=folder.parent / "other", tower={"learning_rate": 1e-3, "only": ["nothing"]}))


def test_an_interrupted_run_ends_as_one_that_was_not(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_words(recipe(output=tmp_path / "whole"))
    made, steps = recipe(output=tmp_path / "cut"), []
    original = WordsTrainer.training_step

    def stop_at_the_fifth(self: WordsTrainer, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(WordsTrainer, "training_step", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run_words(made)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "config.json").exists()
    cut = run_words(made)
    for file in ("model.safetensors", "words.safetensors"):
        for name, tensor in load_file(whole / file).items():
            assert_close(load_file(cut / file)[name], tensor, rtol=0, atol=0)
    report = json.loads((cut / "training.json").read_text())
    assert report["resumed_from"] == "checkpoint-3"
    with pytest.raises(ConfigurationError, match="changed"):
        run_words(recipe(output=tmp_path / "cut", mix=0.0))


def test_it_starts_from_how_often_each_word_is_true() -> None:
    torch.manual_seed(0)
    model = WordNamer(VisionTower(VisionLanguageConfig(vision_config=VISION)), 1280, torch.tensor([0.5, 0.125])).eval()
    shares = torch.sigmoid(model(torch.randn(2, 3, 64, 64)))
    assert_close(shares, torch.tensor([[0.5, 0.125]]).expand(2, 2))


def test_features_are_standardised_and_the_saved_layer_is_for_them_as_they_come() -> None:
    torch.manual_seed(0)
    config = VisionLanguageConfig(vision_config=VISION)
    model, pixels = WordNamer(VisionTower(config), config.vision_width, torch.tensor([0.5, 0.125])), torch.randn(6, 3, 64, 64)
    model.standardize(pixels)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    features = model.vision_tower(pixels)
    pooled = torch.cat([features.mean(dim=1), features.amax(dim=1)], dim=1)
    assert_close(model.pooled_mean, pooled.mean(dim=0))
    plain = model.plain_head()
    assert_close(pooled @ plain["weight"].T + plain["bias"], model(pixels), atol=1e-4, rtol=1e-4)


def test_photos_kept_aside_are_not_learned_from(recipe: Build) -> None:
    photos = named_photos(recipe().data)
    learned, kept = split(photos, 8, seed=3)
    assert len(learned) == 16
    assert {path for path, _ in learned} | {path for path, _ in kept} == {path for path, _ in photos}
    assert split(photos, 8, seed=3) == (learned, kept)
    assert split(photos, 8, seed=4)[1] != kept
    with pytest.raises(ConfigurationError, match="keep fewer aside"):
        split(photos, 24, seed=0)


def test_bad_input_is_refused_in_a_line(recipe: Build, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no word is used of 50 photos"):
        run_words(recipe(data__at_least=50))
    scenes = {"kind": "photo_tasks", "path": "flickr8k", "options": {"reader": "flickr8k", "tasks": ["caption"]}}
    assert len(named_photos(recipe(data__sources=[scenes]).data)) == 24  # it has the records of what it reads
    (tmp_path / "llava.json").write_text("[]")
    file = tmp_path / "words.yaml"
    file.write_text("kind: words\nname: test\n")
    with pytest.raises(ConfigurationError, match=r"words.yaml: output: field required"):
        open_recipe(file)


def test_the_recipe_that_ships_is_valid() -> None:
    recipe, runner = open_recipe(Path(__file__).parents[2] / "recipes" / "nano" / "words.yaml")
    assert runner is run_words
    assert isinstance(recipe.tower, PartRecipe)
    assert recipe.data.held_out
