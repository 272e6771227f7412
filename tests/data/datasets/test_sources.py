from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from salticid.data.conversation import Turn
from salticid.data.datasets import SOURCES
from salticid.data.datasets.daquar import Daquar
from salticid.data.questions.unknown import DONT_KNOW, KEPT
from salticid.errors import ConfigurationError, DataError

# Those that write questions about annotated photos themselves; published lists are tested beside this file.
WRITTEN = ("flickr8k", "daquar", "coco")


def turns_of(source: Any, seeds: int = 6) -> list[Turn]:
    return [
        turn for index in range(len(source)) for seed in range(seeds) for talk in source.example(index, seed).conversations for turn in talk
    ]


@pytest.mark.parametrize("name", WRITTEN)
def test_the_same_seed_gives_the_same_example_and_others_differ(name: str, corpora: dict[str, Path]) -> None:
    source, again = SOURCES[name](corpora[name]), SOURCES[name](corpora[name])
    assert all(source.example(i, 7) == again.example(i, 7) for i in range(len(source)))
    assert any(source.example(i, 7) != source.example(i, 8) for i in range(len(source)))


@pytest.mark.parametrize("name", WRITTEN)
def test_yes_and_no_are_balanced(name: str, corpora: dict[str, Path]) -> None:
    answers = Counter(turn.answer for turn in turns_of(SOURCES[name](corpora[name]), 20) if turn.answer in ("yes", "no"))
    assert sum(answers.values()) > 500
    assert 0.45 < answers["yes"] / sum(answers.values()) < 0.55


@pytest.mark.parametrize(("name", "other"), [("daquar", "heldout"), ("coco", "heldout")])
def test_splits_share_no_photo_and_cover_all(name: str, other: str, corpora: dict[str, Path]) -> None:
    train = {photo.path for photo in SOURCES[name](corpora[name]).photos}
    held = {photo.path for photo in SOURCES[name](corpora[name], split=other).photos}
    assert train
    assert held
    assert not train & held
    assert len(train | held) == 120


@pytest.mark.parametrize("name", WRITTEN)
def test_some_conversations_have_two_turns_and_none_repeats_a_question(name: str, corpora: dict[str, Path]) -> None:
    source = SOURCES[name](corpora[name])
    talks = [talk for i in range(len(source)) for s in range(8) for talk in source.example(i, s).conversations]
    assert {len(talk) for talk in talks} == {1, 2}
    assert 0.05 < sum(len(talk) == 2 for talk in talks) / len(talks) < 0.16
    assert all(talk[0].question != talk[-1].question for talk in talks if len(talk) == 2)


@pytest.mark.parametrize("name", WRITTEN)
def test_kept_questions_are_never_shown(name: str, corpora: dict[str, Path]) -> None:
    asked = turns_of(SOURCES[name](corpora[name]))
    assert any(turn.answer == DONT_KNOW for turn in asked)
    assert not {turn.question for turn in asked} & set(KEPT)


def test_flickr8k_asks_every_kind(corpora: dict[str, Path]) -> None:
    source = SOURCES["flickr8k"](corpora["flickr8k"])
    asked = turns_of(source, 15)
    questions = {turn.question for turn in asked}
    starts = (
        "What color is the ",
        "How many ",
        "What is the man doing?",
        "Where is ",
        "What animal is this?",
        "Is there ",
        "Describe the photo.",
    )
    assert [start for start in starts if not any(q.startswith(start) for q in questions)] == []
    assert any(turn.answer.startswith("I don't see a") for turn in asked)


def test_flickr8k_holds_all_captions(corpora: dict[str, Path]) -> None:
    answers = [turn.answer for talk in SOURCES["flickr8k"](corpora["flickr8k"]).example(0, 3).conversations for turn in talk]
    assert {"A dog running through the grass.", "A brown dog running through the grass.", "A dog in the grass."} <= set(answers)


def test_daquar_uses_the_questions_as_given_and_all_of_them(corpora: dict[str, Path]) -> None:
    source = Daquar(corpora["daquar"], questions=2, existence=0, unknowns=0.0)
    asked = {turn for seed in range(20) for talk in source.example(0, seed).conversations for turn in talk}
    assert Turn("what is on the table", "tape dispenser") in asked
    assert {turn.question for turn in asked} == {"what is near the wall", "how many lamps are there", "what is on the table"}
    assert all(sum(map(len, source.example(0, seed).conversations)) == 2 for seed in range(5))


def test_daquar_adds_what_a_teacher_answered(corpora: dict[str, Path], tmp_path: Path) -> None:
    photo = Daquar(corpora["daquar"]).photos[0].path.name
    rows = [{"image": photo, "question": f"what is behind {n}", "answer": "night_stand"} for n in range(5)]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    source = Daquar(corpora["daquar"], questions=1, existence=0, unknowns=0.0, taught=tmp_path, taught_questions=3)
    for seed in range(5):
        told = [turn for talk in source.example(0, seed).conversations for turn in talk if turn.answer == "night stand"]
        assert len({turn.question for turn in told}) == 3, "and no more, none twice"
        assert sum(map(len, source.example(0, seed).conversations)) == 4
    assert source.photos == Daquar(corpora["daquar"]).photos, "what people asked stays apart"
    with pytest.raises(DataError, match="make them with: salticid data answers"):
        Daquar(corpora["daquar"], split="heldout", taught=tmp_path)
    with pytest.raises(DataError, match="make them with: salticid data answers"):
        Daquar(corpora["daquar"], taught=tmp_path / "none")


def test_coco_answers_agree_with_the_boxes(corpora: dict[str, Path]) -> None:
    source = SOURCES["coco"](corpora["coco"])
    kinds = set()
    for index, photo in enumerate(source.photos):
        names = [box.category for box in photo.objects]
        for turn in (turn for seed in range(8) for talk in source.example(index, seed).conversations for turn in talk):
            for name in {"person", "dog", "cat", "chair", "cup", "bench", "umbrella"}:
                many = "people" if name == "person" else "benches" if name == "bench" else name + "s"
                if turn.question in (f"Is there a {name} in the image?", f"Are there any {many} in the photo?"):
                    assert turn.answer == ("yes" if name in names else "no")
                    kinds.add("existence")
                if turn.question == f"How many {many} are there?" and not photo.captions:
                    assert turn.answer == str(names.count(name))
                    kinds.add("zero" if turn.answer == "0" else "count")
            kinds.add(turn.question.split(" ")[0] + " " + turn.answer if "left of" in turn.question else turn.question)
    assert {"existence", "count", "zero", "Is yes", "Is no", "What is the biggest object in the photo?", "Where is the cup?"} <= kinds


@pytest.mark.parametrize("name", WRITTEN)
def test_a_missing_empty_or_broken_data_set_names_the_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="put the data set there"):
        SOURCES[name](tmp_path / "none")
    with pytest.raises(DataError, match=r"train\.json"):
        SOURCES[name](tmp_path)
    (tmp_path / "train.json").write_text("[{")
    with pytest.raises(DataError, match="fetch the file again"):
        SOURCES[name](tmp_path)
    (tmp_path / "train.json").write_text(json.dumps({"images": []} if name == "coco" else []))
    with pytest.raises(DataError, match="lists no photos"):
        SOURCES[name](tmp_path)
    rows = [{"image": "a.webp"}]
    (tmp_path / "train.json").write_text(json.dumps({"images": rows} if name == "coco" else rows))
    with pytest.raises(DataError, match=r"Row 0 .* lacks"):
        SOURCES[name](tmp_path)
    with pytest.raises(ConfigurationError, match="choose one of train"):
        SOURCES[name](tmp_path, split="test")
