"""One answer, token by token, with a key-value cache. `model.generate` is the plain twin: greedy tokens are equal in float32."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping

import torch
from torch import Tensor
from transformers import DynamicCache

from salticid.engine.sampling import GenerationOptions, next_token
from salticid.errors import InputError
from salticid.models import VisionLanguageModel


@torch.inference_mode()
def generate_tokens(
    model: VisionLanguageModel, inputs: Mapping[str, Tensor], options: GenerationOptions, stop: Collection[int]
) -> Generator[int]:
    """Yield the ids of the answer as they are decided.

    Args:
        inputs: `input_ids` (1, T), and `image_features` (I, N, D) or `pixel_values` (I, 3, H, W) where there are photos.
        stop: ids that end the answer; they are not yielded. Closing the iterator ends it too, before any further computation.

    Raises:
        InputError: more than one row, or a prompt that leaves the model no room to answer.
    """
    seen_1T = inputs["input_ids"]
    if seen_1T.shape[0] != 1:
        raise InputError(f"answers are generated one at a time, not {seen_1T.shape[0]}; call model.generate for a batch")
    generator = None if options.seed is None else torch.Generator(seen_1T.device).manual_seed(options.seed)
    cache = DynamicCache(config=model.config.get_text_config())
    step = dict(inputs)
    for _ in range(min(options.max_new_tokens, _room(model, seen_1T.shape[1]))):
        logits_V = model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        logits_V[model.config.image_token_id] = -torch.inf  # a photo's placeholder is no word
        token = next_token(logits_V, seen_1T[0], options, generator)
        if token in stop:
            return
        yield token
        step = {"input_ids": seen_1T.new_tensor([[token]])}
        seen_1T = torch.cat([seen_1T, step["input_ids"]], dim=1)


def _room(model: VisionLanguageModel, used: int) -> int:
    context = model.config.get_text_config().max_position_embeddings
    if used >= context:
        raise InputError(
            f"the question with its photos takes {used} tokens but the model reads {context}; shorten it, or start a new conversation"
        )
    return int(context - used)
