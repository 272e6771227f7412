from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from salticid.data.conversation import Turn
from salticid.data.datasets.llava import Llava
from salticid.data.templates import get_template
from salticid.errors import ConfigurationError, DataError

HUMAN, GPT = "human", "gpt"


def talk(*values: str, start: str = HUMAN) -> list[dict[str, str]]:
    speakers = (HUMAN, GPT) if start == HUMAN else (GPT, HUMAN)
    return [{"from": speakers[index % 2], "value": value} for index, value in enumerate(values)]


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Read rows in LLaVA's format, whose photos are 1.jpg and 2.jpg."""
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)

    def call(*rows: Any, **options: Any) -> Llava:
        (tmp_path / "mine.json").write_text(json.dumps(rows))
        return Llava(tmp_path, annotations="mine.json", **options)

    return call


@pytest.mark.parametrize("question", ["<image>\nWhat is this?", "What is this?\n<image>", "What is <image>this?", "What is this?"])
def test_a_photo_stands_first_wherever_it_is_marked(read: Any, tmp_path: Path, question: str) -> None:
    example = read({"image": "1.jpg", "conversations": talk(question, "A cat.", " Why? ", "So.")}).example(0, 0)
    assert example.images == (tmp_path / "1.jpg",)
    assert example.conversations == ((Turn("What is this?", "A cat."), Turn(" Why? ", "So.")),)


def test_rows_of_text_and_of_several_photos(read: Any, tmp_path: Path) -> None:
    source = read(
        {"conversations": talk("Hi", "Hello")},
        {"image": ["1.jpg", "2.jpg"], "conversations": talk("<image><image>\nCompare.", "Equal.")},
        {"image": [], "conversations": talk("Hi", "Hello")},
    )
    assert [len(source.example(index, 0).images) for index in range(3)] == [0, 2, 0]
    assert source.example(1, 0).conversations == ((Turn("Compare.", "Equal."),),)


def test_moe_llavas_prompts(read: Any) -> None:
    row = {"image": "1.jpg", "conversations": talk("<image>\nWhat is this?", "A cat.")}
    (turns,) = read(row).example(0, 0).conversations
    assert get_template("moe_llava").prompt(turns, 1).endswith(" USER: <image>\nWhat is this? ASSISTANT: A cat.<|endoftext|>")
    (turns,) = read(row, questions=False).example(0, 0).conversations
    assert get_template("moe_llava_pretrain").prompt(turns, 1) == "<image>A cat.\n"


def test_a_task_is_put_in_front(read: Any) -> None:
    row = {"image": "1.jpg", "conversations": talk("<image>\nWhy?", "So.")}
    assert read(row, task="vqa").example(0, 0).conversations == ((Turn("[vqa] Why?", "So."),),)
    with pytest.raises(ConfigurationError, match="unknown task 'paint'; known: vqa"):
        read(row, task="paint")


def test_what_teaches_nothing_is_left_out(read: Any) -> None:
    source = read(
        {"conversations": talk("Hello", "Hi", "Hello again", start=GPT)},
        {"conversations": talk("One?", "Two.", "Three?")},
        {"conversations": talk("Alone?")},
        {"conversations": talk("Silent?", "")},
    )
    assert [source.example(index, 0).conversations for index in range(len(source))] == [
        ((Turn("Hi", "Hello again"),),),
        ((Turn("One?", "Two."),),),
        (),
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": "1.jpg"}, "lacks 'conversations'; it has image"),
        ({"conversations": "Hi"}, "'conversations' is str, not list"),
        ({"image": 3, "conversations": talk("Hi", "Hello")}, "'image' is no file name"),
        ({"image": [""], "conversations": talk("Hi", "Hello")}, "'image' is no file name"),
        ({"conversations": [{"from": "cat", "value": "miau"}]}, "a turn that is not {from: human | user | gpt | assistant, value: text}"),
        ({"conversations": [{"from": "human", "value": 3}]}, "a turn that is not"),
        ({"conversations": ["Hi", "Hello"]}, "a turn that is not"),
        ({"conversations": [*talk("Hi"), *talk("Hi", "Hello", "Bye")]}, "do not take turns; they are question, question, answer"),
        ({"conversations": talk("<image>\nHi", "Hello")}, "marks 1 photos with <image> and names 0"),
        ({"image": "1.jpg", "conversations": talk("<image><image>Hi", "Hello")}, "marks 2 photos with <image> and names 1"),
        ({"image": "1.jpg", "conversations": talk("Hi", "Hello", "<image> Now?", "No.")}, "marks a photo in a later question"),
        ({"image": "1.jpg", "conversations": talk("Hi", "<image> is an odd answer")}, "has <image> in an answer"),
    ],
)
def test_malformed_rows_are_named(read: Any, row: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        read({"conversations": talk("Hi", "Hello")}, row)
    assert "Row 1 of " in str(caught.value)
    assert "mine.json" in str(caught.value)
    assert says in str(caught.value)


def test_a_file_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="annotations is a file name"):
        Llava(tmp_path)
