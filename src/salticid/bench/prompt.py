"""A prompt of any length, the same for everyone who is measured."""

from __future__ import annotations

import random

from salticid.errors import InputError
from salticid.models import VisionLanguageConfig


def random_prompt(config: VisionLanguageConfig, tokens: int, seed: int = 0) -> list[int]:
    """Random ids of words; the photo's placeholder is none of them. To a decoder they cost what image tokens cost."""
    drawn = random.Random(seed)
    image = config.image_token_id
    ids = (drawn.randrange(config.text_config.vocab_size - 1) for _ in range(tokens))
    return [token if token < image else token + 1 for token in ids]


def check_room(config: VisionLanguageConfig, prompt_tokens: int, new_tokens: int) -> None:
    """Raises `InputError` where the decoder reads fewer tokens than that."""
    room = config.text_config.max_position_embeddings
    if prompt_tokens + new_tokens > room:
        raise InputError(f"{prompt_tokens} tokens of prompt and {new_tokens} of answer are more than the {room} that the model reads")
