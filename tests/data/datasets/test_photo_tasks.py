"""TinyGPT-V's tasks over the small data sets."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from salticid.data.boxes import encode_box, parse_boxes
from salticid.data.conversation import Turn
from salticid.data.datasets.photo_tasks import READERS, WRITERS, PhotoTasks, region
from salticid.data.records import Box, BoxedPhoto
from salticid.data.scenes import Scene
from salticid.errors import ConfigurationError

PHOTO = BoxedPhoto(
    Path("photo.jpg"),
    ("a dog and two cups",),
    (
        Box("dog", 0.1, 0.2, 0.3, 0.4, False),
        Box("cup", 0.5, 0.5, 0.2, 0.2, False),
        Box("cup", 0.8, 0.5, 0.3, 0.2, False),
        Box("person", 0.0, 0.0, 0.5, 0.5, True),
    ),
)


def written(task: str) -> set[Turn]:
    return {turn for seed in range(40) for turn in WRITERS[task](PHOTO, random.Random(seed))}


def test_refer_asks_for_what_there_is_one_of() -> None:
    turns = written("refer")
    assert {turn.answer for turn in turns} == {"{<10><20><40><60>}"}
    assert all(turn.question.startswith("[refer] ") and "dog" in turn.question for turn in turns)


def test_identify_is_the_inverse() -> None:
    turns = written("identify")
    assert {turn.answer for turn in turns} == {"dog", "cup"}
    for turn in turns:
        assert turn.question.startswith("[identify] ")
        (box,) = parse_boxes(turn.question)
        assert (box.left == 0.1) == (turn.answer == "dog")


def test_detection_names_every_box_of_a_kind_without_crowds() -> None:
    assert {turn.answer for turn in written("detection")} == {
        "<p>dog</p> {<10><20><40><60>}",
        "<p>cup</p> {<50><50><70><70>}<delim>{<80><50><100><70>}",
    }


def test_places_name_every_box_behind_nothing() -> None:
    (turn,) = written("places")
    assert turn == Turn("", "<p>dog</p> {<10><20><40><60>} <p>cup</p> {<50><50><70><70>} <p>cup</p> {<80><50><100><70>}")
    assert WRITERS["places"](BoxedPhoto(Path("photo.jpg"), (), ()), random.Random(0)) == []


def test_grounding_lists_everything_the_largest_first() -> None:
    turns = written("grounding")
    assert {turn.answer for turn in turns} == {"<p>dog</p> {<10><20><40><60>} <p>cup</p> {<80><50><100><70>}<delim>{<50><50><70><70>}"}
    assert all(turn.question.startswith("[grounding] ") for turn in turns)
    assert WRITERS["grounding"](BoxedPhoto(Path("photo.jpg"), (), ()), random.Random(0)) == []


def test_captions_bare_and_asked_for() -> None:
    assert written("bare") == {Turn("", "A dog and two cups.")}
    assert all(turn.question.startswith("[caption] ") and turn.answer == "A dog and two cups." for turn in written("caption"))
    assert written("vqa") == set()


@pytest.mark.parametrize(("reader", "task", "mark"), [("daquar", "vqa", "[vqa] "), ("flickr8k", "bare", ""), ("coco", "refer", "[refer] ")])
def test_over_each_reader(data_folder: Path, reader: str, task: str, mark: str) -> None:
    source = PhotoTasks(data_folder / reader, reader=reader, tasks=[task], turns=2)
    example = source.example(0, seed=1)
    assert example == source.example(0, seed=1)
    assert example.images[0].is_file()
    assert 1 <= len(example.conversations) <= 2
    assert all(len(turns) == 1 and turns[0].question.startswith(mark) for turns in example.conversations)


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_counted_that_no_task_asks_for(data_folder: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("takes seconds at full size")

    for module in ("coco", "daquar", "flickr8k"):
        monkeypatch.setattr(f"salticid.data.datasets.{module}.BalancedThings", refuse)
    assert len(PhotoTasks(data_folder / reader, reader=reader, tasks=["bare"]))


def test_unknown_names_are_refused(data_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="tasks names sing; known: bare, caption"):
        PhotoTasks(data_folder / "coco", tasks=["sing"])
    with pytest.raises(ConfigurationError, match="reader names pope"):
        PhotoTasks(data_folder / "coco", reader="pope")
    with pytest.raises(ConfigurationError, match="tasks names nothing"):
        PhotoTasks(data_folder / "coco", tasks=[])


def test_windows_move_the_boxes_with_what_is_seen(data_folder: Path) -> None:
    source = PhotoTasks(data_folder / "coco", tasks=["refer"], turns=1, window=0.6)
    examples = [source.example(index, seed) for index in range(len(source)) for seed in range(10)]
    assert all(example.view is not None for example in examples)
    answers = {example.conversations for example in examples if example.conversations}
    whole = PhotoTasks(data_folder / "coco", tasks=["refer"], turns=1)
    assert len(answers) > len({whole.example(index, seed).conversations for index in range(len(whole)) for seed in range(10)})
    assert all(whole.example(index, 0).view is None for index in range(len(whole)))


@pytest.mark.parametrize("window", [0.0, 1.5])
def test_a_window_is_a_share(window: float, data_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="window is"):
        PhotoTasks(data_folder / "coco", window=window)


def test_cutouts_are_pasted_and_asked_for(data_folder: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A unicorn.")
    source = PhotoTasks(data_folder / "flickr8k", reader="flickr8k", tasks=["refer"], turns=1, cutouts=str(tmp_path))
    for index in range(len(source)):
        example = source.example(index, 0)
        assert isinstance(example.view, Scene)
        (box,) = (region(pasted.box) for pasted in example.view.pasted)
        assert [turn.answer for (turn,) in example.conversations] == [encode_box(box)]
        assert "unicorn" in example.conversations[0][0].question


def test_cutouts_need_photos_without_boxes(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cutouts and boxes are for photos of the reader flickr8k, not of coco"):
        PhotoTasks(data_folder / "coco", cutouts=str(tmp_path))
    with pytest.raises(ConfigurationError, match="most is 0"):
        PhotoTasks(data_folder / "flickr8k", reader="flickr8k", cutouts=str(tmp_path), most=0)
