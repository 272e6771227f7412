from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("pydantic", reason="needs the extra 'train'")

STAGE = """\
name: test
model: {model}
output: trained
train: {{connector: {{learning_rate: 1.0e-3}}}}
data:
  folder: {folder}
  sources: [{{kind: llava, path: mine, options: {{annotations: mine.json}}}}]
schedule: {{steps: 5, batch_size: 2}}
"""


def row(number: int, answer: str = "A cat.") -> dict[str, Any]:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
    return {"image": f"{number}.png", "conversations": said}


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A recipe for four photos in LLaVA's format."""
    (tmp_path / "mine").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "mine" / f"{number}.png")
    (tmp_path / "mine/mine.json").write_text(json.dumps([row(number) for number in range(3)] + [row(3, "A cat. " * 200)]))
    path = tmp_path / "stage.yaml"
    path.write_text(STAGE.format(model=tiny_model_folder, folder=tmp_path))
    return path


def test_rows_photos_tokens_and_examples_are_told(run: Any, recipe: Path) -> None:
    result = run("data", "check", recipe)
    assert (result.code, result.err) == (0, "")
    assert "llava (mine): 4 rows, 4 looked at" in result.out
    assert "photos 4, rows that cannot be read 0, without words 0" in result.out
    assert "too long 1 (25.0%)" in result.out
    assert result.out.count('"<image>What?<|im_start|>A cat.') == 3
    (source,) = json.loads(run("data", "check", recipe, "--json", "--limit", 2).out)["sources"]
    assert (source["rows"], source["looked_at"], source["problems"]) == (4, 2, [])


def test_unreadable_photos_are_problems(run: Any, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine/1.png").write_bytes(b"no photo")
    result = run("data", "check", recipe)
    assert result.code == 5
    assert "PROBLEM: 1 of 4 rows cannot be read" in result.out
    assert "1.png" in result.out
    (source,) = json.loads(run("data", "check", recipe, "--json").out)["sources"]
    assert source["unreadable"] == 1


def test_a_source_that_cannot_be_opened_does_not_hide_the_others(run: Any, recipe: Path) -> None:
    result = run(
        "data", "check", recipe, "data.sources=[{kind: gqa, path: gqa}, {kind: llava, path: mine, options: {annotations: mine.json}}]"
    )
    assert result.code == 5
    assert "gqa (gqa): 0 rows" in result.out
    assert "PROBLEM: There is no folder" in result.out
    assert "llava (mine): 4 rows" in result.out


def test_too_long_or_silent_throughout_is_a_problem(run: Any, recipe: Path, tmp_path: Path) -> None:
    result = run("data", "check", recipe, "data.max_length=3")
    assert (result.code, "PROBLEM: no conversation fits 3 tokens" in result.out) == (5, True)
    (tmp_path / "mine/mine.json").write_text(json.dumps([row(0, "")]))
    result = run("data", "check", recipe)
    assert (result.code, "PROBLEM: no row says anything" in result.out) == (5, True)


def test_without_a_model_all_but_tokens_is_told(run: Any, recipe: Path) -> None:
    result = run("data", "check", recipe, "model=nowhere")
    assert result.code == 0
    assert "4 rows" in result.out
    assert "tokens were not counted (no model in nowhere" in result.out


def test_recipes_of_other_kinds_are_looked_at_too(run: Any, data_folder: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "recipes/tinygpt_v/nano_qformer.yaml"
    result = run("data", "check", recipe, f"data.folder={data_folder}", "--limit", 3)
    assert result.code == 0
    assert "flickr8k (flickr8k): 52 rows, 3 looked at" in result.out
    assert "tokens were not counted" in result.out


def test_bad_input_is_one_line(run: Any, one_clear_line: Any, recipe: Path, tmp_path: Path) -> None:
    one_clear_line(run("data", "check", tmp_path / "none.yaml"), 2, "no recipe at")
    one_clear_line(run("data", "check", recipe, "data.sources.0.kind=lava"), 2, "unknown data set kind 'lava'; known: flickr8k")
    one_clear_line(run("data", "check", recipe, "data.sources.0.options.colour=red"), 2, "colour")
    one_clear_line(run("data", "check", recipe, "data.sources.0.options={}"), 2, "annotations is a file name")
    one_clear_line(run("data", "check", recipe, "--limit", 0), 2, "--limit")
    one_clear_line(run("data", "check", recipe, "--model", "giant"), 3, "no model 'giant'")


def test_objects_are_cut_out(run: Any, data_folder: Path, tmp_path: Path) -> None:
    """The miniature photos are too small to cut anything out of; enlarged, every free object is."""
    out = tmp_path / "objects"
    result = run("data", "objects", data_folder / "coco", "--out", out)
    assert (result.code, result.out) == (5, "")
    assert "no photo has an object of 32 pixels or more" in result.err
    assert not out.exists()
    large = tmp_path / "coco"
    (large / "images").mkdir(parents=True)
    (large / "train.json").write_bytes((data_folder / "coco/train.json").read_bytes())
    for photo in (data_folder / "coco/images").iterdir():
        Image.open(photo).resize((96, 80)).save(large / "images" / photo.name)
    result = run("data", "objects", large, "--out", out)
    count = len(list(out.glob("*.png")))
    assert (result.code, result.err, result.out) == (0, "", f"{out}\t{count} cut-outs\n")
    names = {path.read_text().strip() for path in out.glob("*.txt")}
    assert "dog" in names and "person" not in names  # noqa: PT018


def test_a_teacher_answers_about_photos_that_look_alike(
    run: Any, one_clear_line: Any, data_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from salticid.data.datasets.daquar import Daquar

    out = tmp_path / "taught"
    arguments = ("data", "answers", tiny_model_folder, data_folder / "daquar", "--out", out)
    result = run(*arguments)
    count = len(Daquar(data_folder / "daquar").photos)
    assert result.code == 0
    assert result.out == f"{out}\t{2 * count} answers; each photo kept aside, 1.000 of people's own {2 * count} are answered as they did\n"
    turns = [turn for talk in Daquar(data_folder / "daquar", taught=out).example(0, 0).conversations for turn in talk]
    assert [turn.answer for turn in turns].count("lamp") == 2, "one of people's, one taught"
    one_clear_line(run(*arguments), 4, "exists already")
    alone = run(*arguments[:-1], tmp_path / "alone", "--networks", 0, "--borrowed", 0, "--alike", 1)
    assert alone.out == result.out.replace(str(out), str(tmp_path / "alone")), "tiny photos borrow nothing: the same questions"
    one_clear_line(run("data", "answers", tmp_path, data_folder / "daquar", "--out", tmp_path / "new"), 3, "no model in")
    one_clear_line(run("data", "answers", tiny_model_folder, data_folder / "coco", "--out", tmp_path / "new"), 5, "train.json")
    assert not (tmp_path / "new").exists()


def test_a_teacher_of_captions_is_written(
    run: Any, one_clear_line: Any, data_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from salticid.data.datasets.flickr8k import read_photos
    from salticid.train.taught_captions import read_teacher

    out = tmp_path / "seen"
    arguments = ("data", "captions", tiny_model_folder, data_folder / "flickr8k", "--out", out)
    result = run(*arguments)
    photos = read_photos(data_folder / "flickr8k")
    assert result.code == 0
    assert result.out.startswith(f"{out}\t{len(photos)} photos; each kept aside, ")
    assert all(read_teacher(out).knows(photo.captions) for photo in photos)
    one_clear_line(run(*arguments), 4, "exists already")
    one_clear_line(run("data", "captions", tmp_path, data_folder / "flickr8k", "--out", tmp_path / "new"), 3, "no model in")
    one_clear_line(run("data", "captions", tiny_model_folder, data_folder / "daquar", "--out", tmp_path / "new"), 5, "train.json")
    assert not (tmp_path / "new").exists()


def test_captions_are_drawn_and_scored(run: Any, one_clear_line: Any, data_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    from salticid.data.datasets.flickr8k import read_photos
    from salticid.train.drawn_captions import read_drawn

    seen, out, folder = tmp_path / "seen", tmp_path / "drawn", data_folder / "flickr8k"
    run("data", "captions", tiny_model_folder, folder, "--out", seen)
    arguments = ("data", "drawn", tiny_model_folder, seen, folder, "--samples", 2, "--out", out)
    result = run(*arguments)
    assert result.code == 0
    assert set(read_drawn(out)) == {tuple(photo.captions) for photo in read_photos(folder)}
    assert result.out.startswith(f"{out}\t{sum(len(each.captions) for each in read_drawn(out).values())} captions of ")
    one_clear_line(run(*arguments), 4, "exists already")
    one_clear_line(run("data", "drawn", tiny_model_folder, tmp_path / "none", folder, "--out", tmp_path / "new"), 5, "data captions")
    one_clear_line(run("data", "drawn", tmp_path, seen, folder, "--out", tmp_path / "new"), 3, "no model in")
    assert not (tmp_path / "new").exists()


def test_boxes_are_told_of_photos_with_captions(run: Any, one_clear_line: Any, data_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from salticid.data.boxes import Region
    from salticid.data.datasets.photo_tasks import PhotoTasks
    from salticid.errors import DataError
    from salticid.train import told_boxes

    asked: dict[str, Any] = {}

    def tell(folder: Path, photos: Any, names: list[str]) -> Any:
        asked.update(folder=folder, names=names)
        yield photos[0].path, [Region(0.0, 0.1, 0.5, 1.0, "dog"), Region(0.5, 0.1, 1.0, 1.0, "cup")]

    monkeypatch.setattr(told_boxes, "tell_boxes", tell)
    out = tmp_path / "told"
    arguments = ("data", "boxes", "q", data_folder / "flickr8k", "--like", data_folder / "coco", "--out", out)
    result = run(*arguments)
    source = PhotoTasks(data_folder / "flickr8k", reader="flickr8k", tasks=["refer"], boxes=str(out))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{out}\t2 boxes on 1 of ")
    assert [box.category for box in source.photos[0].objects] == ["dog", "cup"]
    assert asked["folder"] == Path("q")
    assert asked["names"] == sorted(set(asked["names"]))
    assert "dog" in asked["names"]
    one_clear_line(run(*arguments), 4, "exists already")

    def fail(*_: Any) -> Any:
        raise DataError("no caption names anything")
        yield

    monkeypatch.setattr(told_boxes, "tell_boxes", fail)
    one_clear_line(run(*arguments[:-1], tmp_path / "none"), 5, "no caption names anything")
    assert not (tmp_path / "none").exists()
