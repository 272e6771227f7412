"""`generate` with photos: the cache, beams and padding change no word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close


def test_left_padding_changes_nothing_in_generation(tiny: Any) -> None:
    model = tiny.model("clip", "pool", "phi")
    batch = tiny.batch(model.config, photos=(1, 1, 1), words=(9, 4, 6))
    del batch["labels"]
    together = model.generate(**batch, max_new_tokens=5, do_sample=False)
    for row in range(3):
        real = batch["attention_mask"][row].bool()
        alone = model.generate(
            input_ids=batch["input_ids"][row : row + 1, real],
            pixel_values=batch["pixel_values"][row : row + 1],
            max_new_tokens=5,
            do_sample=False,
        )
        assert together[row, -5:].tolist() == alone[0, -5:].tolist()


@pytest.mark.parametrize("language", ["llama", "gemma2", "mistral"])
def test_the_cache_changes_no_word(tiny: Any, language: str) -> None:
    model = tiny.model("clip", "pool", language).double()  # in float32 rounding decides between beams that score alike
    batch = tiny.batch(model.config, photos=(2, 0, 1), words=(6, 3, 8))
    batch["pixel_values"] = batch["pixel_values"].double()
    del batch["labels"]
    for options in ({}, {"num_beams": 3}):
        cached, plain = (model.generate(**batch, **options, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False))
        assert cached.equal(plain)
    naive = batch["input_ids"][2:, batch["attention_mask"][2].bool()]
    for _ in range(6):
        logits = model(input_ids=naive, pixel_values=batch["pixel_values"][2:]).logits[:, -1]
        logits[:, tiny.image_id] = -torch.inf
        naive = torch.cat([naive, logits.argmax(-1, keepdim=True)], dim=1)
    greedy = model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert greedy[2, -6:].tolist() == naive[0, -6:].tolist()


def test_beams_keep_each_rows_photos(tiny: Any) -> None:
    model = tiny.model("siglip", "pool", "qwen3")
    batch = tiny.batch(model.config, photos=(2, 0, 1), words=(6, 5, 8))
    del batch["labels"]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    together = model.generate(**batch, **options)
    first = 0
    for row, photos in enumerate((2, 0, 1)):
        real = batch["attention_mask"][row].bool()
        own = {"pixel_values": batch["pixel_values"][first : first + photos]} if photos else {}
        first += photos
        alone = model.generate(input_ids=batch["input_ids"][row : row + 1, real], **own, **options)
        assert together.sequences[2 * row : 2 * row + 2, -4:].tolist() == alone.sequences[:, -4:].tolist()
        assert_close(together.sequences_scores[2 * row : 2 * row + 2], alone.sequences_scores)
        best = alone.sequences[:1]
        chances = model(input_ids=best, **own).logits[0, -5:-1].log_softmax(-1)
        assert_close(chances.gather(1, best[0, -4:, None]).mean(), alone.sequences_scores[0])


def test_a_placeholder_is_never_written(tiny: Any) -> None:
    model = tiny.model()
    model.language_model.lm_head = torch.nn.Linear(24, tiny.vocabulary)
    with torch.no_grad():
        model.language_model.lm_head.bias[tiny.image_id] = 100
    batch = tiny.batch(model.config)
    del batch["labels"]
    for cache in (True, False):
        written = model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=cache)[:, -3:]
        assert written.shape == (1, 3)
        assert (written != tiny.image_id).all()
