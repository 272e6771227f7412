"""One answer, token by token. `model.generate` is the plain twin: greedy tokens are equal in float32.

T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping

import torch
from torch import Tensor

from salticid.engine.decoder.decoder import Decoder
from salticid.engine.prefix_cache import PrefixCache
from salticid.engine.sampling import Expect, GenerationOptions, Sampler
from salticid.errors import InputError
from salticid.models import VisionLanguageModel
from salticid.models.merge import merge_image_features, refuse_lone_placeholders


@torch.inference_mode()
def generate_tokens(
    decoder: Decoder,
    inputs: Mapping[str, Tensor],
    options: GenerationOptions,
    stop: Collection[int],
    prefixes: PrefixCache | None = None,
) -> Generator[int]:
    """Yield the ids of the answer as they are decided.

    Args:
        inputs: `input_ids` (1, T), and `image_features` (I, N, D) or `pixel_values` (I, 3, H, W) where there are photos; `phrase_scores`
            (P,) of `PhraseHead` for a caption of one photo.
        stop: ids that end the answer; they are not yielded. Closing the iterator ends it too, before any further computation.
        prefixes: what was read lately, which is not read again.

    Raises:
        InputError: more than one row, or a prompt that leaves the model no room to answer.
    """
    model, ids_T = decoder.model, one_row(inputs)
    limit = answer_limit(model, len(ids_T), options)
    x_TD = embed_prompt(model, inputs)
    sampler = Sampler(options, ids_T, model.config.image_token_id, expected_phrases(model, inputs))
    cache = decoder.new_cache(len(ids_T) + limit) if prefixes is None else prefixes.take(x_TD, len(ids_T) + limit)
    read, written = 0 if prefixes is None else cache.length, []
    try:
        logits_V, read = decoder.prefill(x_TD[read:], cache), len(x_TD)
        while (token := sampler(logits_V)) not in stop:
            yield token
            written.append(token)
            if len(written) == limit:
                return
            logits_V, read = decoder.step(ids_T.new_tensor([token]), cache)[0], read + 1
    finally:
        if prefixes is not None:
            cache.truncate(read)  # a pass that was interrupted has left its mark beyond
            prefixes.keep(torch.cat([x_TD, model.get_input_embeddings()(ids_T.new_tensor(written))]), cache)


def expected_phrases(model: VisionLanguageModel, inputs: Mapping[str, Tensor]) -> Expect | None:
    """What adds to the logits of a caption what the model's phrase head expects of its photo; `None` for any other prompt."""
    scores_P = inputs.get("phrase_scores")
    if scores_P is None or model.phrases is None:
        return None
    head = model.phrases
    return lambda logits_V, written: head.add_to(logits_V, scores_P, written)


def one_row(inputs: Mapping[str, Tensor]) -> Tensor:
    """Ids (T,) of a prompt; raises `InputError` where there are several."""
    ids_BT = inputs["input_ids"]
    if len(ids_BT) != 1:
        raise InputError(f"a prompt is one row of ids, not {len(ids_BT)}; call generate_rows with one prompt for each")
    return ids_BT[0]


def embed_prompt(model: VisionLanguageModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Words and image tokens of one prompt (T, D).

    Raises:
        InputError: as many placeholders as image tokens are needed.
    """
    ids_1T = inputs["input_ids"]
    words_1TD = model.get_input_embeddings()(ids_1T)
    features = inputs.get("image_features")
    if features is None and "pixel_values" in inputs:
        features = model.get_image_features(inputs["pixel_values"])
    if features is None:
        refuse_lone_placeholders(ids_1T, model.config.image_token_id)
        return words_1TD[0]
    return merge_image_features(words_1TD, ids_1T, features, model.config.image_token_id)[0]


def answer_limit(model: VisionLanguageModel, used: int, options: GenerationOptions) -> int:
    """Tokens that an answer may have after a prompt of `used`; raises `InputError` where there is no room."""
    context = model.config.get_text_config().max_position_embeddings
    if used >= context:
        raise InputError(
            f"the question with its photos takes {used} tokens but the model reads {context}; shorten it, or start a new conversation"
        )
    return min(options.max_new_tokens, int(context - used))
