"""Captions compared with each other: what is drawn and kept, the loss, and that learning follows the scores."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

import salticid
from salticid.checkpoints.load import load_model, load_processor
from salticid.data.collate import Collator
from salticid.data.conversation import Example, Turn
from salticid.data.datasets.flickr8k import read_photos
from salticid.data.questions.captions import DESCRIBE
from salticid.data.templates import get_template
from salticid.errors import ConfigurationError, DataError
from salticid.train import ranked
from salticid.train.drawn_captions import FILE, DrawnCaptions, draw, read_drawn, write_drawn
from salticid.train.ranked import answer_logprobs, choose, ranking_loss
from salticid.train.recipe import StageRecipe
from salticid.train.stage import run_stage
from salticid.train.taught_captions import CaptionTeacher

GOOD, BAD = "a dog on the beach", "two red cups on a table"


@pytest.fixture
def drawn(stage_recipe: Callable[..., StageRecipe], tmp_path: Path) -> Path:
    """Four captions of each training photo, of which the first is the best and the second the next."""
    photos = read_photos(stage_recipe().data.folder / "flickr8k")
    folder = tmp_path / "drawn"
    folder.mkdir()
    write_drawn(folder, [DrawnCaptions(tuple(photo.captions), (GOOD, BAD, "a photo", "stones"), (0.9, 0.3, 0.2, 0.1)) for photo in photos])
    return folder


def test_the_loss_is_zero_where_log_probabilities_grew_as_scores_ask() -> None:
    scores = [(0.5, 0.2, 0.8), (), (0.1, 0.1)]
    grown = torch.tensor([[5.0, 2.0, 8.0], [9.0, 9.0, 9.0], [3.0, 3.0, 7.0]])
    loss, agreement = ranking_loss(grown, scores, temperature=0.1)
    assert loss.item() == pytest.approx(0.0, abs=1e-9)
    assert agreement == pytest.approx(1.0)
    other, disagreement = ranking_loss(-grown, scores, temperature=0.1)
    assert other.item() == pytest.approx((0.0 + 36.0 + 36.0) / 5)
    assert disagreement == pytest.approx(-1.0)


def test_one_stray_score_asks_for_eight_nats_at_most() -> None:
    loss, _ = ranking_loss(torch.zeros(1, 2), [(100.0, 0.0)], temperature=0.1)
    assert loss.item() == pytest.approx(64.0)


def test_log_probabilities_are_those_of_each_answer_alone(tiny_model_folder: Path) -> None:
    model, collate = load_model(tiny_model_folder).eval(), Collator(load_processor(tiny_model_folder), get_template("nano"))
    photo = Image.new("RGB", (24, 20), "red")
    captions = [(GOOD, BAD), ("a photo",)]
    batch = collate([Example((photo,), tuple((Turn(DESCRIBE, caption),) for caption in each)) for each in captions])
    with torch.no_grad():
        found = answer_logprobs(model(**batch, logits_for_labels_only=True).logits, batch["labels"])
        for row, each in enumerate(captions):
            for number, caption in enumerate(each):
                alone = collate([Example((photo,), ((Turn(DESCRIBE, caption),),))])
                labels = F.pad(alone["labels"][:, 1:], (0, 1), value=-100)
                expected = -F.cross_entropy(model(**alone).logits[labels != -100], labels[labels != -100], reduction="sum")
                assert_close(found[row, number], expected, atol=1e-4, rtol=1e-4)
    assert found[1, 1] == 0, "the second row has one answer"
    with pytest.raises(ConfigurationError, match="3 tokens have logits"):
        answer_logprobs(torch.zeros(3, 5), batch["labels"])


def test_the_best_are_always_chosen_and_others_of_the_better_half_by_chance() -> None:
    many = DrawnCaptions(("people's",), tuple("abcdefgh"), (0.1, 0.9, 0.3, 0.8, 0.2, 0.4, 0.5, 0.6))

    def chosen(drawn: DrawnCaptions, count: int, seed: int = 0) -> tuple[str, ...]:
        scored = choose(drawn, count, random.Random(seed))
        assert scored is not None
        assert [drawn.scores[drawn.captions.index(caption)] for caption in scored.captions] == list(scored.rewards)
        return scored.captions

    assert {chosen(many, 3, seed) for seed in range(20)} == {("b", "d", "h"), ("b", "d", "g")}
    assert chosen(many, 2) == ("b", "d")
    assert set(chosen(many, 8)) == set("bdhg"), "the worse half is never among them"
    assert chosen(DrawnCaptions(("x",), ("a", "b", "c"), (1.0, 2.0, 3.0)), 8) == ("c", "b")
    assert choose(DrawnCaptions(("x",), ("a",), (1.0,)), 4, random.Random(0)) is None, "one caption compares with nothing"


def test_a_stage_learns_what_scores_better(stage_recipe: Callable[..., StageRecipe], drawn: Path) -> None:
    recipe = stage_recipe(
        ranked={"drawn": drawn, "temperature": 0.1, "weight": 0.1},
        train={"language_model": {"learning_rate": 2e-3}},
        data__sources=[{"kind": "flickr8k", "path": "flickr8k", "options": {"captions": 0, "questions": 1}}],
        data__flip=False,
        schedule__steps=12,
    )
    run_stage(recipe)
    collate = Collator(load_processor(recipe.model), get_template("nano"))
    photo = read_photos(recipe.data.folder / "flickr8k")[0].path

    def margin(folder: Path) -> float:
        batch = collate([Example((Image.open(photo),), ((Turn(DESCRIBE, GOOD),), (Turn(DESCRIBE, BAD),)))])
        with torch.no_grad():
            good, bad = answer_logprobs(load_model(folder).eval()(**batch, logits_for_labels_only=True).logits, batch["labels"])[0].tolist()
        return good - bad

    assert margin(recipe.output) > margin(recipe.model) + 0.5
    state = json.loads((recipe.output / "checkpoints" / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["log_history"][-1]["agreement"] > 0.5


def test_captions_of_a_step_are_the_same_when_it_is_done_again(stage_recipe: Callable[..., StageRecipe], drawn: Path) -> None:
    """A run that was cut off and goes on ends in the same weights as one that was not."""
    options = {"ranked": {"drawn": drawn, "captions": 2}, "schedule__steps": 4}
    whole = run_stage(stage_recipe(**options))
    part = stage_recipe(**options, output=whole.parent / "part")
    run_stage(part)
    for checkpoint in (part.output / "checkpoints").glob("checkpoint-4"):
        (checkpoint / "trainer_state.json").unlink()  # as a kill leaves it
    run_stage(part)
    one, other = load_model(whole).state_dict(), load_model(part.output).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_supervised_conversations_count_beside_drawn_captions(stage_recipe: Callable[..., StageRecipe], drawn: Path) -> None:
    """Drawn captions are in the batch, and take no part in the supervised loss."""
    recipe = stage_recipe(ranked={"drawn": drawn}, data__sources=[{"kind": "flickr8k", "path": "flickr8k"}], data__flip=False)
    seen: list[tuple[int, set[float]]] = []
    compare = ranked.with_drawn_captions

    def spy(*given: object, **options: object) -> dict[str, torch.Tensor]:
        batch = compare(*given, **options)  # type: ignore[arg-type]
        answers = ranked.answer_index(batch["labels"])
        first = (answers > 0) & (answers <= 2)
        seen.append((int(answers.max()), set(batch["label_weights"][first].tolist())))
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranked, "with_drawn_captions", spy)
        run_stage(recipe)
    assert seen
    assert all(most > 2 and weights == {0.0} for most, weights in seen)


def test_drawing_scores_what_differs_and_can_be_repeated(tiny_model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    photos = read_photos(data_folder / "flickr8k")
    teacher = CaptionTeacher([photo.captions for photo in photos], torch.randn(len(photos), 6, generator=torch.manual_seed(0)))
    model = salticid.load(str(tiny_model_folder))
    found = list(draw(model, teacher, photos, samples=3, temperature=1.0))
    assert [each.references for each in found] == [tuple(photo.captions) for photo in photos]
    assert max(len(each.captions) for each in found) == 3, "draws differ"
    for each in found:
        assert 1 <= len(each.captions) == len(set(each.captions)) <= 3
        assert list(each.scores) == teacher.score(each.captions, each.references)
    assert list(draw(model, teacher, photos, samples=3, temperature=1.0)) == found
    write_drawn(tmp_path, found)
    assert list(read_drawn(tmp_path).values()) == found
    stranger = CaptionTeacher([("Someone else.",), ("Another.",)], torch.eye(2))
    with pytest.raises(DataError, match=f"does not know {photos[0].path.name}"):
        list(draw(model, stranger, photos, samples=2, temperature=1.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "draw them with: salticid data drawn"),
        ("[{", "not valid JSON"),
        ("[]", "lists no photos"),
        ('[{"references": ["a"]}]', "lacks captions, scores"),
        ('[{"references": ["a"], "captions": ["b"], "scores": []}]', "row 0 of .* draw it again"),
        ('[{"references": ["a"], "captions": "b", "scores": [1]}]', "row 0 of .* draw it again"),
        ('[{"references": ["a"], "captions": ["b"], "scores": [NaN]}]', "row 0 of .* draw it again"),
    ],
)
def test_damaged_drawn_captions_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(DataError, match=message):
        read_drawn(tmp_path)


def test_scores_that_are_whole_numbers_are_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps([{"references": ["a"], "captions": ["b", "c"], "scores": [1, 0]}]))
    assert read_drawn(tmp_path)[("a",)].scores == (1.0, 0.0)


def test_one_objective_at_a_time(stage_recipe: Callable[..., StageRecipe], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give either self_critical or ranked"):
        stage_recipe(ranked={"drawn": tmp_path}, self_critical={})
