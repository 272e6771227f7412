"""Rows that are written together are the answers that each prompt gets alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from salticid.engine.batch import generate_rows
from salticid.engine.decoder.decoder import Decoder, ModuleDecoder, make_decoder
from salticid.engine.generate import generate_tokens
from salticid.engine.prefix_cache import PrefixCache
from salticid.engine.sampling import GenerationOptions
from salticid.engine.vision_language import VisionLanguage
from salticid.errors import InputError

STEPS = 16
QUESTIONS = ("What is in this photo?", "two red cups?", "a dog on the beach, yes or no? Describe the photo.")
Prompts = list[dict[str, torch.Tensor]]


@pytest.fixture
def prompts(vlm: VisionLanguage, photos: list[np.ndarray]) -> Prompts:
    """Of unequal length, with none, one and two photos."""
    shown = ([], photos[:1], photos[1:3], photos[2:])
    texts = (*QUESTIONS, QUESTIONS[0])
    return [dict(vlm.processor(images=some, text="<image>" * len(some) + text)) for some, text in zip(shown, texts, strict=True)]


def alone(decoder: Decoder, prompts: Prompts, options: GenerationOptions, stop: Sequence[int] = ()) -> list[list[int]]:
    return [list(generate_tokens(decoder, prompt, options, stop)) for prompt in prompts]


def together(
    decoder: Decoder,
    prompts: Prompts,
    options: GenerationOptions,
    stop: Sequence[int] = (),
    wants_more: Callable[[int, int], bool] = lambda row, token: True,
    prefixes: PrefixCache | None = None,
) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in prompts]

    def note(row: int, token: int) -> bool:
        written[row].append(token)
        return wants_more(row, token)

    generate_rows(decoder, prompts, options, stop, note, prefixes)
    return written


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7},
        {"temperature": 1.3, "seed": 5},
        {"temperature": 1.0, "top_p": 0.8, "top_k": 9, "seed": 1},
    ],
)
def test_every_row_is_its_single_answer(vlm: VisionLanguage, prompts: Prompts, options: dict[str, Any]) -> None:
    decoder, chosen = make_decoder(vlm.model), GenerationOptions(max_new_tokens=STEPS, **options)
    expected = alone(decoder, prompts, chosen)
    assert len({tuple(row) for row in expected}) == len(prompts)
    assert together(decoder, prompts, chosen) == expected


def test_a_repeated_prompt_is_read_once(vlm: VisionLanguage, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, chosen = make_decoder(vlm.model), GenerationOptions(max_new_tokens=STEPS)
    repeated = [prompts[0], prompts[1], prompts[1], dict(prompts[1]), prompts[2], prompts[1]]
    expected = alone(decoder, repeated, chosen)
    read: list[int] = []
    prefill = type(decoder).prefill
    monkeypatch.setattr(type(decoder), "prefill", lambda self, x_TD, cache: (read.append(len(x_TD)), prefill(self, x_TD, cache))[1])
    for prefixes in (None, PrefixCache(decoder)):
        read.clear()
        assert together(decoder, repeated, chosen, prefixes=prefixes) == expected
        assert len(read) == 4


def test_rows_end_when_they_end(vlm: VisionLanguage, prompts: Prompts) -> None:
    decoder, options = make_decoder(vlm.model), GenerationOptions(max_new_tokens=STEPS)
    expected = alone(decoder, prompts, options)
    stop = [expected[0][0], expected[1][3], expected[2][9]]
    cut = alone(decoder, prompts, options, stop)
    assert len({len(row) for row in cut}) > 2
    assert together(decoder, prompts, options, stop) == cut


def test_a_row_that_wants_no_more_gets_no_more(vlm: VisionLanguage, prompts: Prompts) -> None:
    decoder, options = make_decoder(vlm.model), GenerationOptions(max_new_tokens=STEPS)
    seen = [0] * len(prompts)

    def wants_more(row: int, token: int) -> bool:
        seen[row] += 1
        return seen[row] < 2 + row

    written = together(decoder, prompts, options, wants_more=wants_more)
    assert written == [row[: 2 + number] for number, row in enumerate(alone(decoder, prompts, options))]


def test_with_what_was_read_before(vlm: VisionLanguage, prompts: Prompts) -> None:
    decoder, options = make_decoder(vlm.model), GenerationOptions(max_new_tokens=STEPS)
    prefixes = PrefixCache(decoder)
    for _ in range(2):
        assert together(decoder, prompts, options, prefixes=prefixes) == alone(decoder, prompts, options)


def test_without_a_lean_decoder_rows_are_written_one_by_one(vlm: VisionLanguage, prompts: Prompts) -> None:
    options = GenerationOptions(max_new_tokens=4)
    modules = ModuleDecoder(vlm.model)
    assert together(modules, prompts, options) == alone(make_decoder(vlm.model), prompts, options)
    assert [len(row) for row in together(modules, prompts, options, wants_more=lambda row, token: False)] == [1] * len(prompts)


def test_the_context_bounds_each_row(vlm: VisionLanguage) -> None:
    prompts = [{"input_ids": torch.full((1, length), 40)} for length in (250, 20)]
    assert [len(row) for row in together(make_decoder(vlm.model), prompts, GenerationOptions(max_new_tokens=9))] == [6, 9]
    with pytest.raises(InputError, match="takes 256 tokens but the model reads 256"):
        together(make_decoder(vlm.model), [*prompts, {"input_ids": torch.full((1, 256), 40)}], GenerationOptions())


def test_no_prompts(vlm: VisionLanguage) -> None:
    assert together(make_decoder(vlm.model), [], GenerationOptions()) == []


def test_ask_many_is_ask(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    asked = [(photo, question) for photo in (*photos, None, photos[:2]) for question in QUESTIONS]
    options: dict[str, Any] = {"max_new_tokens": 10, "repetition_penalty": 1.5}
    expected = [vlm.ask(photo, question, **options) for photo, question in asked]
    stop = expected[0][2:4]
    for batch_size in (1, 4, 100):
        assert vlm.ask_many(iter(asked), batch_size, **options) == expected
    assert vlm.ask_many(asked, stop=stop, **options) == [vlm.ask(photo, question, stop=stop, **options) for photo, question in asked]
    assert vlm.ask_many([]) == []


def test_ask_many_refuses(vlm: VisionLanguage) -> None:
    with pytest.raises(InputError, match="batch_size is 0; it must be at least 1"):
        vlm.ask_many([(None, "What?")], batch_size=0)
    with pytest.raises(InputError, match="unknown generation option beams"):
        vlm.ask_many([], beams=2)
