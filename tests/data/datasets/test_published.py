"""Every published format in miniature: what is read, in exactly which words, and what is said of broken files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salticid.data.conversation import Turn
from salticid.data.datasets import SOURCES
from salticid.data.datasets.captions import ALIGNMENT_QUESTIONS
from salticid.data.tasks import POOLS
from salticid.data.templates import PHI_BOS, get_template
from salticid.errors import ConfigurationError, DataError

BOX = "{<1><2><30><40>}"
VQA = {kind: [form.replace("{}", asked) for form in POOLS["vqa"]] for kind, asked in {"coco_vqa": "is it red?", "ok_vqa": "who?"}.items()}

# Of each kind: the questions that may be asked and the answer, as upstream's readers write them (their code and the recorded pools).
SAID: dict[str, tuple[list[str], str]] = {
    "cc_sbu_align": (list(ALIGNMENT_QUESTIONS), "A (Big) dog."),
    "llava_detail": (["what is this?"], "A Cat."),
    "llava_reason": (["what is this?"], "A Cat."),
    "unnatural_instruction": (["add 1 and 2 one word"], "three"),
    "refcoco": ([f"[refer] {form.replace('{}', 'the left dog')}" for form in POOLS["refer"]], "{<10><10><60><90>}"),
    "invrefcoco": ([f"[identify] {form.replace('{}', '{<10><10><60><90>}')}" for form in POOLS["identify"]], "the left dog"),
    "refvg": ([f"[refer] {form.replace('{}', 'a red ball')}" for form in POOLS["refer"]], "{<0><25><50><75>}"),
    "flickr_grounded_caption": ([f"[grounding] {form}" for form in POOLS["grounding"]], f"<p>A Dog</p> {BOX} runs."),
    "flickr_caption_to_phrase": (["[detection] A Dog runs."], f"<p>A Dog</p> {BOX}"),
    "flickr_object_to_phrase": (["[detection] A Dog"], f"<p>A Dog</p> {BOX}<delim>{BOX}"),
    "coco_caption": ([f"[caption] {form}" for form in POOLS["caption"]], "a dog runs"),
    "textcaps_caption": ([f"[caption] {form}" for form in POOLS["caption"]], "a sign stop"),
    "ok_vqa": ([f"[vqa] {form}" for form in VQA["ok_vqa"]], "me"),
    "gqa": ([f"[vqa] {form}" for form in VQA["coco_vqa"]], "no"),
    "ocrvqa": ([f"[vqa] {form.replace('{}', 'who wrote this?')}" for form in POOLS["vqa"]], "a nin"),
}


def open_kind(kind: str, folder: Path, published: Any, **options: Any) -> Any:
    return SOURCES[kind](folder, **{**published[kind].options, **options})


def test_each_kind_reads_its_row_and_finds_its_photo(kind: str, publish: Callable[..., Path], published: Any) -> None:
    source = open_kind(kind, publish(kind), published)
    assert len(source) == 1
    example = source.example(0, 3)
    assert source.example(0, 3) == example
    assert [Path(image).is_file() for image in example.images] == [True] * len(published[kind].photos)
    assert len(example.conversations) == 1
    again = pickle.loads(pickle.dumps(source))
    assert again.example(0, 3) == example


@pytest.mark.parametrize("name", list(SAID))
def test_the_words_are_upstreams(name: str, publish: Callable[..., Path], published: Any) -> None:
    source = open_kind(name, publish(name), published)
    turns = [source.example(0, seed).conversations[0] for seed in range(150)]
    questions, answer = SAID[name]
    assert {turn[0].question for turn in turns} == set(questions)
    assert {len(turn) for turn in turns} == {1}
    assert {turn[0].answer for turn in turns} == {answer}


def test_answers_of_many_people_are_drawn_as_often_as_they_were_given(publish: Callable[..., Path], published: Any) -> None:
    source = open_kind("coco_vqa", publish("coco_vqa"), published)
    turns = [source.example(0, seed).conversations[0][0] for seed in range(400)]
    assert {turn.question for turn in turns} == {f"[vqa] {form}" for form in VQA["coco_vqa"]}
    assert 330 < sum(turn.answer == "yes" for turn in turns) < 385


def test_aokvqa_answers_freely_or_among_choices(publish: Callable[..., Path], published: Any) -> None:
    folder = publish("aok_vqa")
    direct, choice = (open_kind("aok_vqa", folder, published, answers=answers) for answers in ("direct", "choice"))
    assert {direct.example(0, seed).conversations[0][0].answer for seed in range(40)} == {"rain", "sun"}
    assert {choice.example(0, seed).conversations[0] for seed in range(40)} == {
        (Turn(f"[vqa] {form.replace('{}', 'why? Choose from rain, snow.')}", "snow"),) for form in POOLS["vqa"]
    }
    with pytest.raises(ConfigurationError, match="unknown answers 'best'; known: direct, choice"):
        open_kind("aok_vqa", folder, published, answers="best")


def test_conversations_become_upstreams_prompts(publish: Callable[..., Path], published: Any) -> None:
    for name in ("llava_conversation", "multitask_conversation"):
        (turns,) = open_kind(name, publish(name), published).example(0, 0).conversations
        written = get_template("tinygpt_v_tasks").prompt(turns, images=1)
        first = " <Img><image></Img> What is this?  [/INST]A Cat.###"
        assert written == PHI_BOS + "[INST]" + first + "[INST] What (color)?  [/INST]Black.###"


def test_single_turns_become_upstreams_prompts(publish: Callable[..., Path], published: Any) -> None:
    def written(name: str, template: str) -> str:
        example = open_kind(name, publish(name), published).example(0, 1)
        return get_template(template).prompt(example.conversations[0], len(example.images))

    assert written("llava_detail", "tinygpt_v_tasks") == PHI_BOS + "[INST] <Img><image></Img> what is this?  [/INST]A Cat.###"
    assert written("unnatural_instruction", "tinygpt_v_tasks") == PHI_BOS + "[INST] add 1 and 2 one word [/INST]three###"
    assert written("cc_sbu_align", "tinygpt_v_describe") in {
        PHI_BOS + f"###Human: <Img><image></Img> {question} ###Assistant: A (Big) dog.###" for question in ALIGNMENT_QUESTIONS
    }


def test_words_can_be_kept_and_boxes_rounded_down(publish: Callable[..., Path], published: Any) -> None:
    kept = open_kind("textcaps_caption", publish("textcaps_caption"), published, clean=False).example(0, 0)
    assert kept.conversations[0][0].answer == "A sign: STOP!"
    content = json.loads(json.dumps(published["refcoco"].content))
    content["annotations"][0]["bbox"] = [21.9, 10.0, 500.0, 80.0]
    folder = publish("refcoco", content)
    answers = [
        open_kind("refcoco", folder, published, rounding=way).example(0, 0).conversations[0][0].answer for way in ("nearest", "down")
    ]
    assert answers == ["{<11><10><100><90>}", "{<10><10><100><90>}"]
    assert len(open_kind("refvg", publish("refvg"), published, max_area=30000)) == 2


def test_an_empty_list_or_a_wrong_type_is_named(kind: str, publish: Callable[..., Path], published: Any) -> None:
    name = published[kind].annotations
    for content, says in (([], name), ("text", name), ([7], name), ({"a": []}, name)):
        with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
            open_kind(kind, publish(kind, content), published)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_row_without_a_key_is_named(kind: str, publish: Callable[..., Path], published: Any) -> None:
    def without_words(value: Any) -> Any:
        """The same file, its texts replaced by numbers."""
        if isinstance(value, dict):
            return {key: without_words(item) for key, item in value.items()}
        return [without_words(item) for item in value] if isinstance(value, list) else None

    broken = without_words(published[kind].content)
    with pytest.raises(DataError, match=r"Row 0 of |has a turn that|annotations"):
        open_kind(kind, publish(kind, broken), published)


def test_a_missing_photo_is_an_error_that_names_it_or_is_counted(kind: str, publish: Callable[..., Path], published: Any) -> None:
    if not published[kind].photos:
        pytest.skip("a data set without photos")
    photo = Path(published[kind].photos[0]).name
    with pytest.raises(DataError, match=rf"1 of the 1 rows of .* lack their photo, such as .*{photo}.*skip_missing"):
        open_kind(kind, publish(kind, photos=False), published)
    with pytest.raises(DataError, match="lack their photo"):
        open_kind(kind, publish(kind, photos=False), published, skip_missing=1.0)


def test_few_photos_may_be_missing(publish: Callable[..., Path], published: Any, caplog: pytest.LogCaptureFixture) -> None:
    row = published["gqa"].content[0]
    folder = publish("gqa", [row, {**row, "image": "gone.jpg"}, row, row])
    source = open_kind("gqa", folder, published, skip_missing=0.25)
    assert (len(source), source.skipped) == (3, 1)
    assert "1 rows left out" in caplog.text
    with pytest.raises(DataError, match=r"gone\.jpg .* raise skip_missing above 0\.25"):
        open_kind("gqa", folder, published, skip_missing=0.2)
    with pytest.raises(ConfigurationError, match="share from 0 to 1, not 'few'"):
        open_kind("gqa", folder, published, skip_missing="few")


def test_unknown_options_and_folders_are_named(kind: str, publish: Callable[..., Path], published: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="colour"):
        open_kind(kind, publish(kind), published, colour="red")
    with pytest.raises(DataError, match="There is no"):
        open_kind(kind, tmp_path / "nowhere", published)
    with pytest.raises(ConfigurationError, match="a file name or a list of them, not 3"):
        open_kind(kind, publish(kind), published, annotations=3)


def test_every_kind_is_described() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/data.md").read_text(encoding="utf-8")
    assert [name for name in SOURCES if f"`{name}`" not in page] == []


def test_several_files_are_put_together(publish: Callable[..., Path], published: Any) -> None:
    folder = publish("coco_vqa")
    (folder / "more.jsonl").write_text(json.dumps(published["coco_vqa"].content[0]) + "\n\n" + json.dumps(published["coco_vqa"].content[0]))
    assert len(open_kind("coco_vqa", folder, published, annotations=["vqa_train.json", "more.jsonl"])) == 3


def test_a_question_of_which_nothing_is_left_says_nothing(publish: Callable[..., Path], published: Any) -> None:
    row = published["gqa"].content[0]
    source = open_kind("gqa", publish("gqa", [{**row, "question": "..."}, {**row, "answer": "!"}]), published)
    assert [source.example(index, 0).conversations for index in (0, 1)] == [(), ()]


def test_ocrvqa_splits_and_endings(publish: Callable[..., Path], published: Any) -> None:
    folder = publish("ocrvqa")
    (folder / "images/010.png").write_bytes((folder / "images/009.jpg").read_bytes())
    source = open_kind("ocrvqa", folder, published, split="test", extension=".png")
    assert source.example(0, 0).images == (folder / "images/010.png",)
    with pytest.raises(ConfigurationError, match="unknown split 'dev'; known: train, validation, test"):
        open_kind("ocrvqa", folder, published, split="dev")
    with pytest.raises(ConfigurationError, match=r"ending such as \.jpg, not 'png'"):
        open_kind("ocrvqa", folder, published, extension="png")
    uneven = {"1": {"imageURL": "a.jpg", "questions": ["Who?"], "answers": [], "split": 1}}
    with pytest.raises(DataError, match="1 questions and 0 answers"):
        open_kind("ocrvqa", publish("ocrvqa", uneven), published)


def test_boxes_elsewhere_than_on_the_grid_are_named(publish: Callable[..., Path], published: Any) -> None:
    with pytest.raises(DataError, match=r"Row 0 of .*groundedcaption\.json has no box .*right file"):
        open_kind("flickr_grounded_caption", publish("flickr_grounded_caption", [{"image_id": 7, "grounded_caption": "A dog."}]), published)
    content = json.loads(json.dumps(published["refcoco"].content))
    content["annotations"][0]["bbox"] = [1, 2, "x", 4]
    with pytest.raises(DataError, match=r"Object 5 of .* has no box on its photo"):
        open_kind("refcoco", publish("refcoco", content), published)
