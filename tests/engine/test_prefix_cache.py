"""What was read before is not read again, and no answer shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from salticid.engine.decoder.decoder import LeanDecoder, make_decoder
from salticid.engine.prefix_cache import PrefixCache
from salticid.engine.vision_language import VisionLanguage

QUESTION = "What is in this photo?"
OPTIONS: dict[str, Any] = {"max_new_tokens": 12}


@pytest.fixture
def read(vlm: VisionLanguage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prompt's reading took."""
    seen: list[int] = []
    prefill = vlm._decoder.prefill

    def counted(x_TD: torch.Tensor, cache: Any) -> torch.Tensor:
        seen.append(len(x_TD))
        return prefill(x_TD, cache)

    monkeypatch.setattr(vlm._decoder, "prefill", counted)
    return seen


def fresh(vlm: VisionLanguage) -> VisionLanguage:
    return VisionLanguage(vlm.model, vlm.processor)


def test_a_second_question_reads_its_own_words(vlm: VisionLanguage, photos: list[np.ndarray], read: list[int]) -> None:
    tokens = len(photos) * vlm.processor.image_tokens
    for question in (QUESTION, "yes?", QUESTION):
        assert vlm.ask(photos, question, **OPTIONS) == fresh(vlm).ask(photos, question, **OPTIONS)
    assert read[0] > tokens
    assert all(count <= read[0] - tokens for count in read[1:])


def test_a_conversation_reads_its_last_turn(vlm: VisionLanguage, photos: list[np.ndarray], read: list[int]) -> None:
    shown = [{"type": "image", "image": photo} for photo in photos]
    turns: list[Any] = [{"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}]
    for _ in range(3):
        answer = vlm.chat(turns, max_new_tokens=2)
        assert answer == fresh(vlm).chat(turns, max_new_tokens=2)
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": "yes?"}]
    assert max(read[1:]) < read[0]


def test_another_photo_is_read_whole(vlm: VisionLanguage, photos: list[np.ndarray], read: list[int]) -> None:
    for photo in (photos[0], photos[1], photos[0], None, photos[:2]):
        assert vlm.ask(photo, QUESTION, **OPTIONS) == fresh(vlm).ask(photo, QUESTION, **OPTIONS)
    assert read[0] == read[1]
    assert read[2] == 1  # photo and question are known: the last token alone gives the first logits


def test_two_answers_at_once_do_not_share_a_cache(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    questions = (QUESTION, "two red cups?")
    expected = [vlm.ask(photos[0], question, **OPTIONS) for question in questions]
    streams = [vlm.stream(photos[0], question, **OPTIONS) for question in questions]
    pieces: list[list[str]] = [[], []]
    for _ in range(OPTIONS["max_new_tokens"] + 1):
        for stream, written in zip(streams, pieces, strict=True):
            written.append(next(stream, ""))
    assert ["".join(written) for written in pieces] == expected


def test_an_interrupted_pass_leaves_nothing_behind(vlm: VisionLanguage, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = vlm.ask(photos[0], QUESTION, **OPTIONS)
    layer = vlm._decoder.plan.layers[1]  # type: ignore[attr-defined]
    for method in ("prefill", "step"):
        with monkeypatch.context() as patch:

            def interrupt(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(type(layer), method, interrupt)
            with pytest.raises(KeyboardInterrupt):
                vlm.ask(photos[0], QUESTION, **OPTIONS)
        assert vlm.ask(photos[0], QUESTION, **OPTIONS) == expected


def test_room_is_bounded(vlm: VisionLanguage) -> None:
    decoder = make_decoder(vlm.model)
    assert isinstance(decoder, LeanDecoder)
    prefixes = PrefixCache(decoder, room=5 * decoder.new_cache(1).nbytes // 2)
    prompts = [torch.full((9, 32), float(number)) for number in range(3)]
    for x_TD in prompts:
        cache = prefixes.take(x_TD, 9)
        assert cache.length == 0
        cache.extend(9)
        prefixes.keep(x_TD, cache)
    assert [prefixes.take(x_TD, 9).length for x_TD in reversed(prompts)] == [8, 8, 0]
    nothing = PrefixCache(decoder, room=1)
    nothing.keep(prompts[0], nothing.take(prompts[0], 9))
    assert nothing.take(prompts[0], 9).length == 0


def test_a_short_common_beginning_is_no_reason_to_share(vlm: VisionLanguage) -> None:
    prefixes = PrefixCache(make_decoder(vlm.model))
    x_TD = torch.arange(20.0)[:, None].expand(20, 32).clone()
    cache = prefixes.take(x_TD, 20)
    cache.extend(20)
    prefixes.keep(x_TD, cache)
    other_TD = x_TD.clone()
    other_TD[9:] += 100
    assert prefixes.take(other_TD, 20).length == 0
    other_TD[9] = x_TD[9]
    assert prefixes.take(other_TD, 20).length == 10


def test_models_whose_experts_have_bounded_room_read_prompts_whole(vlm: VisionLanguage) -> None:
    class Routing:
        routing = "deepspeed"

    vlm.model.experts = Routing()  # type: ignore[assignment]
    assert fresh(vlm)._prefixes is None
