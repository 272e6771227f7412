"""Q-Former pretraining from recipe to folder: it learns, goes on where it stopped, and fits the connector of a whole model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

pytest.importorskip("pydantic", reason="needs the extra 'train'")
pytest.importorskip("accelerate", reason="needs the extra 'train'")

from salticid.checkpoints.assemble import Parts, assemble
from salticid.checkpoints.qformer import load_qformer
from salticid.errors import CheckpointError, ConfigurationError, DataError
from salticid.eval.retrieval import captioned_split, evaluate_retrieval
from salticid.models import EfficientNetLiteConfig, EfficientNetLiteModel, VisionLanguageModel
from salticid.train.assemble import run_assemble
from salticid.train.kinds import open_recipe
from salticid.train.qformer import QFormerTrainer, run_qformer
from salticid.train.qformer_recipe import QFormerRecipe
from salticid.train.recipe import PartsRecipe

VISION = {"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64}
QFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "encoder_hidden_size": 1280}
THINGS = ("dog", "red cup", "photo", "table", "beach", "two cups", "no", "what")
Build = Callable[..., QFormerRecipe]


@pytest.fixture(scope="module")
def captions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos that differ in colour, two captions each, as `train` and as `dev`."""
    root = tmp_path_factory.mktemp("captions")
    (root / "flickr8k" / "images").mkdir(parents=True)
    rows = []
    for number, thing in enumerate(THINGS):
        colour = tuple(255 * (number >> bit & 1) for bit in range(3))
        Image.new("RGB", (24, 20), colour).save(root / "flickr8k" / "images" / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": [f"a {thing} .", f"{thing} in this photo"]})
    for split in ("train", "dev"):
        (root / "flickr8k" / f"{split}.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("tower")
    EfficientNetLiteModel(EfficientNetLiteConfig(**{key: value for key, value in VISION.items() if key != "model_type"})).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def recipe(captions_folder: Path, tower_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> Build:
    """Five steps of four pairs in float32 with dropout, unless a test says otherwise; keys of parts are `data__cache`."""

    def build(**changes: Any) -> QFormerRecipe:
        values: dict[str, Any] = {
            "kind": "qformer",
            "name": "test",
            "output": tmp_path / "trained",
            "vision": VISION,
            "vision_weights": tower_folder,
            "image": "efficientnet_lite",
            "connector": {"kind": "qformer", "queries": 3, "depth": 1, "qformer_config": {**QFORMER, "max_position_embeddings": 32}},
            "tokenizer": str(tiny_model_folder),
            "projection_size": 8,
            "data": {"folder": captions_folder, "sources": [{"kind": "flickr8k", "path": "flickr8k"}], "flip": True, "crop": 0.9},
            "schedule": {"steps": 5, "batch_size": 4, "warmup_steps": 2},
            "learning_rate": 1e-3,
            "precision": "fp32",
            "save_steps": 2,
            "log_steps": 1,
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            holder = values
            for parent in parents:
                holder = holder[parent]
            holder[last] = value
        return QFormerRecipe.model_validate(values)

    return build


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while batch number `step` is computed, counted from 1."""
    count, original = 0, QFormerTrainer.training_step

    def training_step(self: QFormerTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(QFormerTrainer, "training_step", training_step)


def test_everything_but_the_tower_learns(recipe: Build, tower_folder: Path) -> None:
    run = recipe(precision="bf16", schedule__steps=2)
    assert run_qformer(run) == run.output
    model, image_processor, tokenizer = load_qformer(run.output)
    assert (image_processor.size["height"] if isinstance(image_processor.size, dict) else image_processor.size) == 64
    assert tokenizer.convert_ids_to_tokens([model.config.start_token_id, model.config.pad_token_id]) == ["[DEC]", "[PAD]"]
    before, after = weights(tower_folder), weights(run.output)
    assert all(torch.equal(weight, after[f"vision_tower.model.{name}"]) for name, weight in before.items())
    told = report(run.output)
    assert (told["steps"], told["examples"], told["photos"], told["resumed_from"]) == (2, 8, 8, None)
    assert set(told["losses"]) == {"contrastive_loss", "matching_loss", "generation_loss"}
    assert told["temperature"] != pytest.approx(0.07, abs=1e-7)
    assert QFormerRecipe.model_validate(told["recipe"]) == run
    assert not (run.output / "unfinished").exists()


@pytest.mark.parametrize("cache", [False, True])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    """Dropout and the drawing of negatives too."""
    changes: dict[str, Any] = {"data__cache": cache, "data__flip": not cache, "data__crop": 1.0 if cache else 0.9}
    whole, cut = recipe(output=tmp_path / "whole", **changes), recipe(output=tmp_path / "cut", **changes)
    run_qformer(whole)
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        with pytest.raises(KeyboardInterrupt):
            run_qformer(cut)
    assert not (cut.output / "config.json").exists()
    assert [path.name for path in (cut.output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    run_qformer(cut)
    expected, found = weights(whole.output), weights(cut.output)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert_close(found[name], weight, rtol=0, atol=0, msg=name)
    assert report(cut.output)["resumed_from"] == "checkpoint-2"
    assert report(cut.output)["losses"] == report(whole.output)["losses"]
    with pytest.raises(ConfigurationError, match=r"learning_rate 0\.001 -> 0\.002"):
        run_qformer(recipe(output=tmp_path / "cut", learning_rate=2e-3, **changes))


def test_a_short_run_finds_photos_far_better_than_chance(recipe: Build, captions_folder: Path) -> None:
    calm = {**QFORMER, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    run = recipe(
        data__cache=True,
        data__flip=False,
        data__crop=1.0,
        connector__qformer_config=calm,
        schedule={"steps": 120, "batch_size": 8, "warmup_steps": 5},
        learning_rate=3e-3,
        label_smoothing=0.0,
        save_steps=120,
        log_steps=10,
    )
    run_qformer(run)
    state = json.loads((run.output / "checkpoints" / "checkpoint-120" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    photos = captioned_split(captions_folder, "flickr8k")
    figures = evaluate_retrieval(*load_qformer(run.output), photos, rerank=3)
    assert figures.chance["text_to_image_r1"] == pytest.approx(1 / 8)
    assert min(figures.similarity["image_to_text_r1"], figures.similarity["text_to_image_r1"]) >= 0.5  # a random tower tells little
    assert figures.reranked is not None


def test_the_connector_of_a_whole_model_takes_it_over_bit_for_bit(recipe: Build, tiny_model_folder: Path, tmp_path: Path) -> None:
    run = recipe()
    run_qformer(run)
    trained, _, _ = load_qformer(run.output)
    language = tmp_path / "language"
    whole = VisionLanguageModel.from_pretrained(tiny_model_folder)
    whole.language_model.save_pretrained(language)
    _copy_tokenizer(tiny_model_folder, language)

    def parts(**changes: Any) -> Parts:
        fields: dict[str, Any] = {"vision": VISION, "vision_weights": run.output, "language": language, "image": "efficientnet_lite"}
        return Parts(**{**fields, "connector": run.connector, "connector_weights": run.output, **changes})

    model, processor = assemble(parts())
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        read = trained.eval().read(trained.get_image_features(pixels))
        features = model.eval().vision_tower(pixels)
        taken: list[torch.Tensor] = []
        model.connector.layers.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
        model.connector(features)
    assert torch.equal(taken[0], read)
    assert processor.image_tokens == 3
    for changes, message in (
        ({"vision_weights": _other_tower(tmp_path)}, "reads another vision tower; set vision_weights to"),
        ({"connector": {**run.connector, "queries": 4}}, "has other sizes than this connector's: query_tokens"),
        ({"connector": {"depth": 1}}, "connector is no Q-Former"),
        ({"connector_weights": tiny_model_folder}, "holds no pretrained Q-Former but a 'salticid' model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            assemble(parts(**changes))


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_text((source / name).read_text())


def _other_tower(folder: Path) -> Path:
    torch.manual_seed(6)
    config = EfficientNetLiteConfig(**{key: value for key, value in VISION.items() if key != "model_type"})
    EfficientNetLiteModel(config).save_pretrained(folder / "other")
    return folder / "other"


def test_a_second_run_starts_from_the_first(recipe: Build, tmp_path: Path) -> None:
    first = recipe(output=tmp_path / "first")
    run_qformer(first)
    second = recipe(output=tmp_path / "second", start=first.output, learning_rate=1e-9, weight_decay=0.0, schedule__steps=1)
    run_qformer(second)
    for name, weight in weights(first.output).items():
        assert_close(weights(second.output)[name], weight, rtol=0, atol=1e-6, msg=name)


LOCAL = {"vision_positions": True, "vision_standardized": True, "local_queries": True}


def test_queries_learn_their_cells_and_then_what_is_drawn(
    recipe: Build, captions_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """From cached features and without texts; the next run goes on from it with views whose texts are true of them alone."""
    square = {**recipe().connector, "queries": 4}
    data = {"data__flip": False, "data__crop": 1.0, "connector": square, "model": LOCAL}
    cells = recipe(output=tmp_path / "cells", only_local=True, data__cache=True, schedule__steps=30, **data)
    run_qformer(cells)
    losses = report(cells.output)["losses"]
    assert list(losses) == ["locality_loss"]
    assert losses["locality_loss"] < 0.9
    first, _, _ = load_qformer(cells.output)
    assert first.vision_tower.feature_mean.abs().sum() > 0

    source = {"kind": "photo_tasks", "path": "flickr8k", "options": {"reader": "flickr8k", "tasks": ["bare"], "turns": 1}}
    drawn = {"data__captions": "drawn", "data__sources": [{**source, "weight": 3}, {**source, "weight": 1}], "data__crop": 0.9}
    second = recipe(output=tmp_path / "second", start=cells.output, **{**data, **drawn})
    run_qformer(second)
    assert set(report(second.output)["losses"]) == {"contrastive_loss", "matching_loss", "generation_loss", "locality_loss"}
    trained, _, _ = load_qformer(second.output)
    assert torch.equal(trained.vision_tower.feature_mean, first.vision_tower.feature_mean)

    language = tmp_path / "language"
    VisionLanguageModel.from_pretrained(tiny_model_folder).language_model.save_pretrained(language)
    _copy_tokenizer(tiny_model_folder, language)
    fields: dict[str, Any] = {"vision": VISION, "vision_weights": second.output, "language": language, "image": "efficientnet_lite"}
    fields |= {"connector": square, "connector_weights": second.output}
    model, _ = assemble(Parts(**fields, model={"vision_positions": True, "vision_standardized": True}))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.eval().vision_tower(pixels), trained.get_image_features(pixels))
    model.save_pretrained(tmp_path / "whole")
    with torch.no_grad():
        again = VisionLanguageModel.from_pretrained(tmp_path / "whole").eval()
        assert torch.equal(again.vision_tower(pixels), model.vision_tower(pixels))
    with pytest.raises(CheckpointError, match="reads another vision tower"):
        assemble(Parts(**fields, model={"vision_positions": True}))

    third = recipe(output=tmp_path / "third", start=second.output, connector=square, model={**LOCAL, "local_queries": False})
    run_qformer(third)
    assert "locality_loss" not in report(third.output)["losses"]


def test_queries_learn_boxes_of_windows_that_are_drawn_once(
    recipe: Build, data_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """It goes on from a run without boxes, one without boxes goes on from it, and a whole model's linear layers say what it tells."""
    square = {**recipe().connector, "queries": 4}
    shown = {"connector": square, "data__flip": False, "data__crop": 1.0, "data__cache": True, "only_local": True}
    cells = recipe(output=tmp_path / "cells", model=LOCAL, **shown)
    run_qformer(cells)
    source = {"kind": "photo_tasks", "path": "coco", "options": {"reader": "coco", "tasks": ["places"], "turns": 1, "window": 0.5}}
    drawn = {"data__folder": data_folder, "data__sources": [source], "data__captions": "drawn", "data__drawn": 8}
    boxed = {**LOCAL, "boxed_queries": True}
    boxes = recipe(output=tmp_path / "boxes", start=cells.output, model=boxed, schedule__steps=10, **shown, **drawn)
    run_qformer(boxes)
    assert list(report(boxes.output)["losses"]) == ["locality_loss", "box_loss", "name_loss"]
    assert report(boxes.output)["examples"] == 40
    assert len(list(boxes.output.glob("features-*.npy"))) == 1
    before, after = weights(cells.output), weights(boxes.output)
    assert not torch.equal(before["query_tokens"], after["query_tokens"])
    assert torch.equal(before["vision_tower.feature_mean"], after["vision_tower.feature_mean"])
    assert after["box_head.weight"].shape == (45, 32)

    language = tmp_path / "language"
    VisionLanguageModel.from_pretrained(tiny_model_folder).language_model.save_pretrained(language)
    _copy_tokenizer(tiny_model_folder, language)
    fields = {"vision": VISION, "vision_weights": boxes.output, "connector_weights": boxes.output, "language": language}
    telling = {**square, "boxed_queries": True}
    fields |= {"image": "efficientnet_lite", "connector": telling, "model": {"vision_positions": True, "vision_standardized": True}}
    shown_to = {"folder": data_folder, "sources": [source]}
    by_chance = run_assemble(PartsRecipe.model_validate({**fields, "output": tmp_path / "chance"}))
    translated = run_assemble(PartsRecipe.model_validate({**fields, "output": tmp_path / "translated", "translated_data": shown_to}))
    some, others = weights(by_chance), weights(translated)
    changed = {name for name in some if not torch.equal(some[name], others[name])}
    assert changed == {"connector.layers.0.weight", "connector.layers.0.bias"}
    assert torch.equal(others["connector.box_head.weight"], weights(boxes.output)["box_head.weight"])
    unnamed = {**shown_to, "sources": [{"kind": "flickr8k", "path": "flickr8k"}]}
    spoken = [{"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": "<p>dog</p> {<10><10><90><90>}"}]
    photo = next(path for path in data_folder.rglob("*") if path.suffix in (".jpg", ".png"))
    (tmp_path / "dogs.json").write_text(json.dumps([{"id": "dog", "image": photo.name, "conversations": spoken}]))
    alone = {"annotations": str(tmp_path / "dogs.json"), "images": str(photo.parent)}
    one_name = {**shown_to, "sources": [{"kind": "llava", "path": "coco", "options": alone}]}
    for changes, error, message in (
        ({"connector_weights": cells.output, "vision_weights": cells.output}, CheckpointError, "know no boxes; train them with"),
        ({"translated_data": unnamed}, DataError, "translated_data shows nothing that has a name"),
        ({"translated_data": one_name}, DataError, "translated_data shows things of one name alone"),
    ):
        with pytest.raises(error, match=message):
            run_assemble(PartsRecipe.model_validate({**fields, "output": tmp_path / "no", "translated_data": shown_to, **changes}))
    with pytest.raises(ValueError, match="translated_data needs a Q-Former that tells boxes; give connector_weights"):
        PartsRecipe.model_validate({**fields, "output": tmp_path / "no", "translated_data": shown_to, "connector_weights": None})
    assert not (tmp_path / "no").exists()

    last = recipe(output=tmp_path / "last", start=boxes.output, model={**LOCAL, "local_queries": False}, connector=square)
    run_qformer(last)
    assert "box_head.weight" not in weights(last.output)


def test_train_tells_kinds_of_recipes_apart(recipe: Build, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    values = recipe().model_dump(mode="json")
    path.write_text(yaml.safe_dump(values))
    opened, run = open_recipe(path, ["schedule.steps=3"])
    assert (opened.schedule.steps, run) == (3, run_qformer)
    path.write_text(yaml.safe_dump({**values, "kind": "q-former"}))
    with pytest.raises(ConfigurationError, match="unknown kind 'q-former'; known: qformer, words; leave it out for a stage"):
        open_recipe(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule__batch_size": 1}, "told from the others of its batch: give 2 or more"),
        ({"schedule__min_lr": 1e-2}, "schedule.min_lr 0.01 is above learning_rate 0.001"),
        ({"only_local": True}, "the queries have no cells: set model.local_queries to true"),
        ({"data__captions": "drawn", "schedule__steps": None, "schedule__epochs": 1}, "has no epochs: give schedule.steps"),
    ],
)
def test_recipes_that_cannot_work_are_refused(recipe: Build, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**changes)


def test_parts_that_do_not_fit_are_refused(recipe: Build, tmp_path: Path) -> None:
    for changes, error, message in (
        ({"data__max_tokens": 33}, ConfigurationError, "max_tokens is 33 but the Q-Former has 32 positions"),
        ({"model": {"vision_layer": [1]}}, ConfigurationError, "has no option 'vision_layer'"),
        ({"model": {"local_queries": True}}, ConfigurationError, "3 queries are no square of cells"),
        ({"connector": {**recipe().connector, "boxed_queries": True}}, ConfigurationError, "in pretraining queries learn boxes by"),
        ({"vision_weights": tmp_path / "none.pth"}, CheckpointError, "no vision weights at"),
        ({"start": tmp_path / "none.pth"}, CheckpointError, "there is no file"),
    ):
        with pytest.raises(error, match=message):
            run_qformer(recipe(**changes))
    assert not (recipe().output / "config.json").exists()
