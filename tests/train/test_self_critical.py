"""Captions that the model draws: their rewards, their weights in a batch, and that learning favours the better ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from salticid.checkpoints.load import load_model, load_processor
from salticid.data.collate import Collator, answer_index, answer_weights
from salticid.data.conversation import Example, Turn
from salticid.data.datasets.flickr8k import read_photos
from salticid.data.templates import get_template
from salticid.errors import ConfigurationError, DataError
from salticid.models.vision import VisionTower
from salticid.scorers.captions import CiderD
from salticid.train import self_critical
from salticid.train.data import TrainingData
from salticid.train.recipe import StageRecipe
from salticid.train.self_critical import Scored, SelfCriticalTrainer, with_drawn_captions
from salticid.train.stage import run_stage
from salticid.train.taught_captions import read_teacher, write_teacher

GOOD, BAD = "a dog on the beach", "two red cups on a table"


@pytest.fixture
def collate(tiny_model_folder: Path) -> Collator:
    return Collator(load_processor(tiny_model_folder), get_template("nano"), weigh_answers=True)


def photo(*turns: Turn, references: tuple[str, ...] = ()) -> Example:
    return Example((Image.new("RGB", (24, 20), "red"),), tuple((turn,) for turn in turns), references)


def test_an_advantage_is_over_the_mean_of_the_others() -> None:
    assert Scored(("a", "b", "c"), (1.0, 2.0, 6.0)).advantages == (-3.0, -1.5, 4.5)
    assert Scored(("a", "b"), (0.7, 0.7)).advantages == (0.0, 0.0)


def test_drawn_captions_are_weighed_and_the_rest_is_as_it_was(collate: Collator) -> None:
    asked, alone = photo(Turn("What colour?", "red")), photo(Turn("How many?", "two"))
    batch = with_drawn_captions([asked, alone], [Scored((GOOD, BAD), (3.0, 1.0)), None], collate, weight=0.5)
    plain = collate([replace(asked, conversations=(*asked.conversations,)), alone])
    answers = answer_index(batch["labels"])
    assert answers[0].max() == 3
    assert answers[1].max() == 1
    weights = batch["label_weights"]
    assert set(weights[0][answers[0] == 1].tolist()) == {1.0}
    assert set(weights[0][answers[0] == 2].tolist()) == {-1.0}
    supervised = answer_weights(batch["labels"])
    for row, number in ((0, 3), (1, 1)):
        chosen = answers[row] == number
        assert_close(weights[row][chosen], supervised[row][chosen])
        assert batch["labels"][row][chosen].tolist() == plain["labels"][row][plain["labels"][row] != -100].tolist()


def test_a_step_favours_what_scored_better(tiny_model_folder: Path, collate: Collator) -> None:
    model = load_model(tiny_model_folder).train()
    example = photo()

    def losses() -> list[float]:
        return [model(**plain(caption)).loss.item() for caption in (GOOD, BAD)]

    def plain(caption: str) -> dict[str, torch.Tensor]:
        return collate([replace(example, conversations=((Turn(self_critical.DESCRIBE, caption),),))])

    before = losses()
    batch = with_drawn_captions([example], [Scored((GOOD, BAD), (2.0, 1.0))], collate, weight=1.0)
    model(**batch, logits_for_labels_only=True).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    after = losses()
    assert after[0] < before[0]
    assert after[1] > before[1]


def test_equal_rewards_move_nothing(tiny_model_folder: Path, collate: Collator) -> None:
    model = load_model(tiny_model_folder).train()
    batch = with_drawn_captions([photo()], [Scored((GOOD, BAD), (1.3, 1.3))], collate, weight=1.0)
    model(**batch).loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_unpacked_conversations_are_refused(tiny_model_folder: Path) -> None:
    unpacked = Collator(load_processor(tiny_model_folder), get_template("nano"), pack=False)
    with pytest.raises(ConfigurationError, match="1 photos gave 2 rows"):
        with_drawn_captions([photo()], [Scored((GOOD, BAD), (1.0, 0.0))], unpacked, weight=1.0)


def test_a_stage_draws_scores_and_learns(stage_recipe: Callable[..., StageRecipe], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[Example], list[Scored | None]]] = []
    weigh = self_critical.with_drawn_captions

    def spy(examples: list[Example], scored: list[Scored | None], *rest: object) -> dict[str, torch.Tensor]:
        seen.append((examples, scored))
        return weigh(examples, scored, *rest)  # type: ignore[arg-type]

    logged: list[dict[str, float]] = []
    log = SelfCriticalTrainer.log
    monkeypatch.setattr(self_critical, "with_drawn_captions", spy)
    monkeypatch.setattr(SelfCriticalTrainer, "log", lambda self, logs, *rest: (log(self, logs, *rest), logged.append(logs))[0])
    recipe = stage_recipe(self_critical={"samples": 3, "max_new_tokens": 6}, schedule__steps=2)
    run_stage(recipe)
    assert len(seen) == 2
    for examples, scored in seen:
        for example, drawn in zip(examples, scored, strict=True):
            assert (drawn is None) == (not example.references)
            assert drawn is None or (len(drawn.captions) == 3 and all(0 <= reward <= 10 for reward in drawn.rewards))
    assert any(drawn for _, scored in seen for drawn in scored)
    assert (recipe.output / "model.safetensors").is_file()


@pytest.mark.parametrize("resting", [True, False])
def test_a_tower_that_rests_looks_once(stage_recipe: Callable[..., StageRecipe], monkeypatch: pytest.MonkeyPatch, resting: bool) -> None:
    looks: list[int] = []
    look = VisionTower.forward
    monkeypatch.setattr(VisionTower, "forward", lambda self, pixels: (looks.append(len(pixels)), look(self, pixels))[1])
    parts = ("connector",) if resting else ("connector", "vision_tower")
    recipe = stage_recipe(
        self_critical={"samples": 2, "max_new_tokens": 4},
        train={part: {"learning_rate": 1e-4} for part in parts},
        data__sources=[{"kind": "flickr8k", "path": "flickr8k"}],
        schedule__steps=2,
    )
    run_stage(recipe)
    assert looks == [recipe.schedule.batch_size] * 2 if resting else sum(looks) > 2 * recipe.schedule.batch_size


def test_a_step_of_words_alone_looks_at_nothing(stage_recipe: Callable[..., StageRecipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps with photos, one may have none."""
    show = TrainingData.__getitem__
    words = Example((), ((Turn("How many?", "two"),),), ())
    monkeypatch.setattr(TrainingData, "__getitem__", lambda self, index: words if index < 2 else show(self, index))
    recipe = stage_recipe(self_critical={"samples": 2, "max_new_tokens": 4}, train={"language_model": {"learning_rate": 1e-4}})
    run_stage(recipe)
    assert (recipe.output / "model.safetensors").is_file()


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_teacher_scores_photos_that_it_knows(stage_recipe: Callable[..., StageRecipe], tmp_path: Path, share: float) -> None:
    recipe = stage_recipe(data__sources=[{"kind": "flickr8k", "path": "flickr8k"}])
    photos = read_photos(recipe.data.folder / "flickr8k")
    write_teacher(tmp_path, photos, torch.randn(len(photos), 6, generator=torch.manual_seed(0)))
    own, unknown = photo(references=photos[0].captions), photo(references=("Somebody else's photo.", "Another one."))
    taught = {"self_critical": {"taught": tmp_path, "taught_share": share}}

    def rewards(recipe: StageRecipe, example: Example) -> tuple[float, ...]:
        trainer = object.__new__(SelfCriticalTrainer)
        trainer.drawing, trainer.reward = recipe.self_critical, CiderD([each.captions for each in photos], mark_end=True)
        trainer.teacher = read_teacher(recipe.self_critical.taught) if recipe.self_critical.taught else None
        return trainer._score(example, [GOOD, photos[1].captions[0]]).rewards

    plain, told = stage_recipe(self_critical={}), stage_recipe(**taught)
    expected = read_teacher(tmp_path).score([GOOD, photos[1].captions[0]], photos[0].captions)
    mixed = [share * new + (1 - share) * old for new, old in zip(expected, rewards(plain, own), strict=True)]
    assert rewards(told, own) == pytest.approx(mixed)
    assert expected != pytest.approx(rewards(plain, own))
    assert rewards(told, unknown) == rewards(plain, unknown)
    run_stage(stage_recipe(self_critical={"samples": 2, "max_new_tokens": 4, **taught["self_critical"]}, schedule__steps=2))
    with pytest.raises(DataError, match="make it with: salticid data captions"):
        run_stage(stage_recipe(self_critical={"taught": tmp_path / "none"}, output=tmp_path / "refused"))


def test_data_without_captions_is_refused(stage_recipe: Callable[..., StageRecipe]) -> None:
    recipe = stage_recipe(self_critical={}, data__sources=[{"kind": "daquar", "path": "daquar"}])
    with pytest.raises(ConfigurationError, match="no photo of the recipe's data has captions"):
        run_stage(recipe)
