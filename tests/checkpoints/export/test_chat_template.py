"""Jinja writes what the templates write, whoever renders it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from salticid.checkpoints.export.chat_template import jinja_chat_template
from salticid.data.conversation import Turn
from salticid.data.templates import TEMPLATES


@cache
def compiled(name: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers and llama-cpp-python set it up
    return environment.from_string(jinja_chat_template(TEMPLATES[name]))


def render(name: str, messages: list[dict[str, Any]]) -> str:
    return compiled(name).render(messages=messages, add_generation_prompt=True)


def said(turns: list[Turn], photos: int, mark: str | None) -> list[dict[str, Any]]:
    """The conversation as messages, photos as content parts or as marks in the text."""
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(turns):
        shown = photos if index == 0 else 0
        parts = [*[{"type": "image"}] * shown, {"type": "text", "text": turn.question}]
        messages.append({"role": "user", "content": parts if mark is None else mark * shown + turn.question})
        if turn.answer:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("photos", [0, 1, 2])
def test_every_template_as_jinja(name: str, photos: int) -> None:
    for earlier in range(3):
        turns = [*[Turn(f"question {index}?", f"answer {index}.") for index in range(earlier)], Turn('the "last"\nline?', "")]
        want = TEMPLATES[name].prompt(turns, photos)
        assert render(name, said(turns, photos, None)) == want
        for mark in ("<__media__>", "<__media_a8Xb__>"):  # llama.cpp's tools, and its server
            assert render(name, said(turns, photos, mark)) == want.replace("<image>", mark)


def test_photos_and_messages_in_any_order() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello "},
        {"role": "user", "content": [{"type": "text", "text": "Which?"}, {"type": "image"}, {"type": "text", "text": "Why?"}]},
    ]
    assert render("nano", messages) == "<image>Be brief.\nHello\nWhich?\nWhy?<|im_start|>"
    assert render("nano", [{"role": "user", "content": "Look:<__media__>well?<__media__>"}]) == (
        "<__media__><__media__>Look:well?<|im_start|>"
    )
