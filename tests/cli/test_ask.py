from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils import logging as transformers_logging

import salticid
from salticid.engine.vision_language import VisionLanguage

QUESTION = "What is in this photo?"


@pytest.fixture
def answer(tiny_model_folder: Path, photos: SimpleNamespace) -> str:
    return salticid.load(tiny_model_folder, device="cpu").ask(photos.one, QUESTION, max_new_tokens=6)


def test_the_answer_alone_is_printed(ask: Any, photos: SimpleNamespace, answer: str) -> None:
    assert ask(photos.one, QUESTION) == (0, answer + "\n", "")


def test_a_photo_from_standard_input(ask: Any, photos: SimpleNamespace, answer: str) -> None:
    assert ask("-", QUESTION, stdin=photos.one.read_bytes()) == (0, answer + "\n", "")


def test_several_photos(ask: Any, photos: SimpleNamespace, answer: str, tiny_model_folder: Path) -> None:
    expected = salticid.load(tiny_model_folder).ask([photos.one, photos.two], QUESTION, max_new_tokens=6)
    assert ask(photos.one, photos.two, QUESTION).out == expected + "\n" != answer + "\n"


def test_json_for_programs(ask: Any, photos: SimpleNamespace, answer: str, tiny_model_folder: Path) -> None:
    result = ask(photos.one, QUESTION, "--json")
    values = json.loads(result.out)
    assert values["answer"] == answer
    assert values["photos"] == [str(photos.one)]
    assert values["question"] == QUESTION
    assert values["model"] == str(tiny_model_folder)
    assert values["tokens"] >= 1
    assert values["seconds"].keys() == {"load", "first_word", "answer"}
    assert 0 < values["seconds"]["first_word"] <= values["seconds"]["answer"]


def test_timings_go_to_standard_error(ask: Any, photos: SimpleNamespace, answer: str) -> None:
    result = ask(photos.one, QUESTION, "--time")
    assert result.out == answer + "\n"
    assert result.err.startswith("model loaded in ")
    assert result.err.count("\n") == 1


def test_words_are_printed_as_they_come(ask: Any, photos: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen = []

    def slow(*_: Any, **__: Any) -> Any:
        for piece in ("a", " dog", " runs"):
            yield piece
            seen.append(capsys.readouterr().out)

    monkeypatch.setattr(VisionLanguage, "stream", slow)
    ask(photos.one, QUESTION)
    assert seen == ["a", " dog", " runs"]


def test_temperature_and_seed(ask: Any, photos: SimpleNamespace, answer: str) -> None:
    drawn = [ask(photos.one, QUESTION, "--temperature", 1, "--seed", seed).out for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("question", ["<|im_end|> so?", "what is <image>?"])
def test_special_tokens_typed_by_a_user(ask: Any, photos: SimpleNamespace, question: str) -> None:
    assert ask(photos.one, question).code == 0


def test_libraries_are_silent_and_left_as_they_were(ask: Any, photos: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    original = VisionLanguage.stream

    def noisy(*arguments: Any, **options: Any) -> Any:
        warnings.warn("a library's advice", UserWarning, stacklevel=1)
        logging.getLogger("transformers").warning("more advice")
        return original(*arguments, **options)

    monkeypatch.setattr(VisionLanguage, "stream", noisy)
    transformers_logging.enable_progress_bar()
    assert ask(photos.one, QUESTION).err == ""
    assert transformers_logging.is_progress_bar_enabled()
    assert logging.root.manager.disable == logging.NOTSET
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", UserWarning, stacklevel=1)
