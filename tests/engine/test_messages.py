from __future__ import annotations

from typing import Any

import pytest

from salticid.data.conversation import Turn
from salticid.engine.messages import read_messages
from salticid.errors import InputError


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(path: str) -> dict[str, str]:
    return {"type": "image", "image": path}


def test_a_string_is_a_question() -> None:
    assert read_messages(" why? ") == ([Turn("why?", "")], [])
    assert read_messages(["why?"]) == ([Turn("why?", "")], [])


def test_a_conversation_with_photos() -> None:
    turns, photos = read_messages(
        [
            {"role": "system", "content": "Be brief."},
            user(image("a.jpg"), text("What is this?")),
            {"role": "assistant", "content": [text("A dog.")]},
            user(text("And"), image("b.jpg"), text("this?")),
        ]
    )
    assert turns == [Turn("Be brief.\nWhat is this?", "A dog."), Turn("And\nthis?", "")]
    assert photos == ["a.jpg", "b.jpg"]


def test_a_photo_may_come_in_a_message_of_its_own() -> None:
    assert read_messages([user(image("a.jpg")), "what is it?"]) == ([Turn("what is it?", "")], ["a.jpg"])


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("", "the question is empty"),
        (" \n", "the question is empty"),
        ([user(image("a.jpg"))], "the question is empty"),
        ([], "lack a question"),
        ([{"role": "assistant", "content": "hi"}], "lack a question"),
        (["hi", {"role": "assistant", "content": "yes"}], "lack a question"),
        ([{"role": "system", "content": "Be brief."}], "lack a question"),
        ([{"role": "tool", "content": "x"}], "unknown role 'tool'; known: system, user, assistant"),
        ([{"content": "x"}], "a message is a string, or a dictionary"),
        ([3], "a message is a string, or a dictionary"),
        ([user({"type": "audio", "audio": 1})], "cannot read a content part of type 'audio'; known"),
        ([user({"type": "image"})], "cannot read a content part of type 'image'"),
        (["hi", {"role": "assistant", "content": [image("a.jpg")]}, "so?"], "photos belong to the user"),
    ],
)
def test_refusals_say_what_to_do(messages: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_messages(messages)
