from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from salticid.engine.decoder.decoder import make_decoder
from salticid.engine.generate import generate_tokens
from salticid.engine.sampling import GenerationOptions
from salticid.engine.vision_language import VisionLanguage
from salticid.errors import InputError

STEPS = 24


def prepare(vlm: VisionLanguage, photos: list[np.ndarray], text: str = "What is in this photo?<|im_start|>") -> dict[str, torch.Tensor]:
    return dict(vlm.processor(images=photos, text="<image>" * len(photos) + text))


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_tokens_equal_generate(vlm: VisionLanguage, photos: list[np.ndarray], count: int, penalty: float) -> None:
    inputs = prepare(vlm, photos[:count])
    plain = vlm.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, repetition_penalty=penalty)[
        0, inputs["input_ids"].shape[1] :
    ]
    options = GenerationOptions(max_new_tokens=STEPS, repetition_penalty=penalty)
    assert list(generate_tokens(make_decoder(vlm.model), inputs, options, stop=())) == plain.tolist()
    assert len(plain) == STEPS


def test_features_do_what_pixels_do(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    inputs = prepare(vlm, photos[:2])
    options = GenerationOptions(max_new_tokens=STEPS)
    from_pixels = list(generate_tokens(make_decoder(vlm.model), inputs, options, stop=()))
    with torch.inference_mode():
        inputs["image_features"] = vlm.model.get_image_features(inputs.pop("pixel_values"))
    assert list(generate_tokens(make_decoder(vlm.model), inputs, options, stop=())) == from_pixels


def test_stops_before_an_end_token(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    inputs = prepare(vlm, photos[:1])
    tokens = list(generate_tokens(make_decoder(vlm.model), inputs, GenerationOptions(max_new_tokens=STEPS), stop=()))
    assert (
        list(generate_tokens(make_decoder(vlm.model), inputs, GenerationOptions(max_new_tokens=STEPS), stop={tokens[5]}))
        == tokens[: tokens.index(tokens[5])]
    )


def test_a_seed_repeats_a_draw_and_leaves_other_draws_alone(vlm: VisionLanguage) -> None:
    inputs = prepare(vlm, [])

    def draw(seed: int) -> list[int]:
        return list(
            generate_tokens(make_decoder(vlm.model), inputs, GenerationOptions(max_new_tokens=STEPS, temperature=1.0, seed=seed), stop=())
        )

    state = torch.random.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_closing_cancels(vlm: VisionLanguage, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, read = make_decoder(vlm.model), []
    for name in ("prefill", "step"):
        plain = getattr(decoder, name)

        def counted(tokens: torch.Tensor, cache: Any, plain: Any = plain) -> torch.Tensor:
            read.append(len(tokens))
            return plain(tokens, cache)

        monkeypatch.setattr(decoder, name, counted)
    inputs = prepare(vlm, [])
    tokens = generate_tokens(decoder, inputs, GenerationOptions(), stop=())
    next(tokens), next(tokens)
    tokens.close()
    # The prompt once, then one token at a time: the cache holds the rest.
    assert read == [inputs["input_ids"].shape[1], 1]
    assert torch.is_grad_enabled()


def test_never_reads_past_the_context(vlm: VisionLanguage) -> None:
    prompt = torch.full((1, 250), 40)
    assert len(list(generate_tokens(make_decoder(vlm.model), {"input_ids": prompt}, GenerationOptions(), stop=()))) == 6
    with pytest.raises(InputError, match="takes 256 tokens but the model reads 256; shorten it"):
        next(generate_tokens(make_decoder(vlm.model), {"input_ids": torch.full((1, 256), 40)}, GenerationOptions(), stop=()))


def test_refuses_a_batch(vlm: VisionLanguage) -> None:
    with pytest.raises(InputError, match="one row of ids, not 2"):
        next(generate_tokens(make_decoder(vlm.model), {"input_ids": torch.full((2, 5), 40)}, GenerationOptions(), stop=()))


def test_the_placeholder_of_a_photo_is_never_written(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    placeholder = vlm.model.config.image_token_id
    embeddings = vlm.model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[placeholder] = 0
        inputs = prepare(vlm, photos[:1])
        hidden = vlm.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        embeddings[placeholder] = hidden * 100  # by far the likeliest, were it allowed
    assert vlm.model(**inputs).logits[0, -1].argmax() == placeholder
    assert placeholder not in list(generate_tokens(make_decoder(vlm.model), inputs, GenerationOptions(max_new_tokens=4), stop=()))
