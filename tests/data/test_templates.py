"""Templates write conversations down: what is asked, what is learned, what is left open."""

from __future__ import annotations

import pytest

from salticid.data.conversation import Turn
from salticid.data.templates import IMAGE_MARK, TEMPLATES, Segment, get_template
from salticid.errors import ConfigurationError

TURNS = (Turn("What is this?", "a dog"), Turn("What colour?", "brown"))


def test_nano_by_hand() -> None:
    template = get_template("nano")
    assert template.prefix(2) == "<image><image>"
    assert template.segments(TURNS, images=1) == [
        Segment("What is this?<|im_start|>", learned=False),
        Segment("a dog<|im_end|>", learned=True),
        Segment("What colour?<|im_start|>", learned=False),
        Segment("brown<|im_end|>", learned=True),
    ]


def test_chatml_by_hand() -> None:
    assert get_template("chatml").prompt(TURNS[:1], images=1) == (
        "<image>\n<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("images", [0, 1, 3])
def test_every_template(name: str, images: int) -> None:
    template = get_template(name)
    segments = template.segments(TURNS, images)
    assert template.prefix(images).count(IMAGE_MARK) == images
    assert [segment.learned for segment in segments] == [False, True, False, True]
    for turn, asked, answered in zip(TURNS, segments[::2], segments[1::2], strict=True):
        assert turn.question in asked.text
        assert turn.answer not in asked.text
        assert answered.text == template.answer_start + turn.answer + template.answer_end
    whole = template.prompt(TURNS, images)
    assert whole.count(IMAGE_MARK) == images
    open_ended = template.prompt((TURNS[0], Turn(TURNS[1].question, "")), images)
    assert whole == open_ended + template.answer_start + TURNS[1].answer + template.answer_end


def test_an_empty_answer_is_open_at_the_end_alone() -> None:
    template = get_template("nano")
    segments = template.segments((Turn("What is this?", ""), Turn("And now?", "")))
    assert [segment.learned for segment in segments] == [False, True, False]
    assert segments[1].text == "<|im_end|>"


def test_unknown_templates_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="unknown conversation template 'nanoo'; known: plain, nano, chatml"):
        get_template("nanoo")
