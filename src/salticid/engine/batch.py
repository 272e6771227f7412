"""Several answers at once: prompts are read one by one, then all rows write together, each until its own end.

A row's tokens are those that it would get alone: prompts share nothing but the products of a step, and each row has its own place in
the text, its own chance, and its own mask over the places where its shorter prompt leaves the cache empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salticid.engine.decoder.cache import KeyValueCache
from salticid.engine.decoder.decoder import Decoder, LeanDecoder
from salticid.engine.generate import answer_limit, embed_prompt, expected_phrases, generate_tokens, one_row
from salticid.engine.prefix_cache import PrefixCache
from salticid.engine.sampling import GenerationOptions, Sampler

Prompt = Mapping[str, Tensor]
WantsMore = Callable[[int, int], bool]
"""Told each row and token as it is decided; says whether that row goes on."""


@torch.inference_mode()
def generate_rows(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    stop: Collection[int],
    wants_more: WantsMore,
    prefixes: PrefixCache | None = None,
) -> None:
    """Write an answer to each prompt; arguments as in `generate_tokens`.

    Raises:
        InputError: a prompt of several rows, or one that leaves no room to answer.
    """
    if isinstance(decoder, LeanDecoder) and len(prompts) > 1:
        _Batch(decoder, prompts, options, stop, wants_more, prefixes).run()
        return
    for row, prompt in enumerate(prompts):
        for token in generate_tokens(decoder, prompt, options, stop, prefixes):
            if not wants_more(row, token):
                break


@dataclass
class _Row:
    """One answer on its way. number: of its prompt. token: its last one. left: how many more it may have."""

    number: int
    sampler: Sampler
    left: int
    token: int = 0
    done: bool = False


class _Batch:
    def __init__(
        self,
        decoder: LeanDecoder,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        stop: Collection[int],
        wants_more: WantsMore,
        prefixes: PrefixCache | None,
    ):
        self.decoder, self.prompts, self.stop, self.wants_more, self.prefixes = decoder, prompts, stop, wants_more, prefixes
        model, ids = decoder.model, [one_row(prompt) for prompt in prompts]
        limits = [answer_limit(model, len(ids_T), options) for ids_T in ids]
        self.rows = [
            _Row(number, Sampler(options, ids_T, model.config.image_token_id, expected_phrases(model, prompt)), limit)
            for number, (ids_T, limit, prompt) in enumerate(zip(ids, limits, prompts, strict=True))
        ]
        longest = max(map(len, ids))
        self.cache = KeyValueCache(decoder.plan.cache, longest + max(limits), [longest - len(ids_T) for ids_T in ids])
        self.cache.length = longest
        self._latest: tuple[Tensor, Tensor] | None = None

    def run(self) -> None:
        for row, prompt in zip(self.rows, self.prompts, strict=True):
            self._decide(row, self._read(row.number, prompt))
        while True:
            alive = [place for place, row in enumerate(self.rows) if not row.done]
            if not alive:
                return
            if 2 * len(alive) <= len(self.rows):  # until then it costs less to go on with rows that have ended than to move the others
                self.cache.keep(alive)
                self.rows = [self.rows[place] for place in alive]
            tokens_B = torch.tensor([row.token for row in self.rows], device=self.decoder.model.device)
            for row, logits_V in zip(self.rows, self.decoder.step(tokens_B, self.cache), strict=True):
                if not row.done:
                    self._decide(row, logits_V)

    def _read(self, number: int, prompt: Prompt) -> Tensor:
        """Logits of the first word. A prompt like the one before, as where several answers are drawn to one question, is not read again."""
        x_TD = embed_prompt(self.decoder.model, prompt)
        if self._latest is not None and torch.equal(x_TD, self._latest[0]):
            self.cache.copy(number - 1, number)
            return self._latest[1].clone()
        cache = self.decoder.new_cache(len(x_TD)) if self.prefixes is None else self.prefixes.take(x_TD, len(x_TD))
        logits_V = self.decoder.prefill(x_TD[cache.length :], cache)
        self.cache.put(number, cache)
        self._latest = x_TD, logits_V.clone()
        if self.prefixes is not None:
            self.prefixes.keep(x_TD, cache)
        return logits_V

    def _decide(self, row: _Row, logits_V: Tensor) -> None:
        row.token = row.sampler(logits_V)
        row.left -= 1
        row.done = row.token in self.stop or not self.wants_more(row.number, row.token) or row.left == 0
