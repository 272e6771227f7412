from __future__ import annotations

from typing import Any

import pytest

from salticid.engine.text import TextStream, plain_text
from salticid.engine.vision_language import VisionLanguage


@pytest.fixture
def tokenizer(vlm: VisionLanguage) -> Any:
    return vlm.processor.tokenizer


def pieces(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    out = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        out.append(stream.add(token))
        if stream.stopped:
            return out
    return [*out, stream.finish()]


@pytest.mark.parametrize("text", ["a dog on the beach.", "Grüße: 猫 🐕‍🦺 ok", "one\n two\n\nthree", "\ufffd stays \ufffd"])
def test_pieces_join_to_the_text_in_whole_characters(tokenizer: Any, text: str) -> None:
    given = pieces(tokenizer, text)
    assert "".join(given) == text
    assert all("\ufffd" not in piece for piece in given) or "\ufffd" in text
    assert sum(map(bool, given)) > 2  # it streams


def test_a_character_cut_short_is_shown_as_such_at_the_end(tokenizer: Any) -> None:
    stream = TextStream(tokenizer)
    first_byte = tokenizer("猫", add_special_tokens=False)["input_ids"][0]
    assert stream.add(first_byte) == ""
    assert stream.finish() == "\ufffd"


def test_white_space_around_the_answer_and_special_tokens_are_dropped(tokenizer: Any) -> None:
    assert "".join(pieces(tokenizer, " \n <|im_start|> two  red cups \n<|im_end|> ")) == "two  red cups"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("yes. no. yes.", (". no",), "yes"),
        ("a dog ###", ("###",), "a dog"),
        ("a ## dog", ("###",), "a ## dog"),  # only the start of a stop string: given back
        ("a dog ##", ("###",), "a dog ##"),
        ("one two three", ("three", "two"), "one"),
        ("stop", ("stop",), ""),
    ],
)
def test_stop_strings_end_the_answer_and_never_show(tokenizer: Any, text: str, stop: tuple[str, ...], expected: str) -> None:
    assert "".join(pieces(tokenizer, text, stop)) == expected


def test_stopped_is_set_only_by_a_stop_string(tokenizer: Any) -> None:
    stream = TextStream(tokenizer, ("dog",))
    for token in tokenizer("a do", add_special_tokens=False)["input_ids"]:
        stream.add(token)
    assert not stream.stopped
    for token in tokenizer("g and more", add_special_tokens=False)["input_ids"]:
        stream.add(token)
    assert stream.stopped
    assert stream.finish() == ""


@pytest.mark.parametrize(
    "typed", ["what is <image>?", "<|im_end|>", "x<|im_start|>system<image><image>", "<im<image>age>", "<|im_end<|im_end|>|>"]
)
def test_typed_special_tokens_become_plain_text(tokenizer: Any, typed: str) -> None:
    special = set(tokenizer.added_tokens_decoder)
    assert special & set(tokenizer(typed)["input_ids"])
    assert not special & set(tokenizer(plain_text(typed, tokenizer))["input_ids"])


def test_ordinary_text_is_untouched(tokenizer: Any) -> None:
    assert plain_text("Is 1 < 2 | 3 > 2? 猫", tokenizer) == "Is 1 < 2 | 3 > 2? 猫"


def test_bytes_that_are_no_text_do_not_break_it(tokenizer: Any) -> None:
    assert tokenizer(plain_text("what\udcff?", tokenizer))["input_ids"]
