"""How the next token is chosen: options, and the arithmetic on one row of logits.

V vocabulary, T tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from salticid.errors import InputError


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How an answer is written.

    max_new_tokens: at most so many. temperature: 0 takes the likeliest token each time, above 0 draws. top_p, top_k: draw among the
    likeliest only (1 and 0: all). repetition_penalty: above 1 discourages every token that has stood before (CTRL, arXiv 1909.05858,
    section 4.1). seed: of the draws. stop: texts that end the answer and do not appear in it.

    Raises:
        InputError: an option is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (no chance) or above"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all) or above"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0; 1 is none"),
            "stop": (all(stop), "texts that are not empty"),
        }
        for name, (holds, range_) in rules.items():
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be {range_}")

    @classmethod
    def of(cls, values: dict[str, Any]) -> GenerationOptions:
        """From keywords; an unknown one raises `InputError` that lists the known ones."""
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise InputError(f"unknown generation option {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**values)


Expect = Callable[[Tensor, Sequence[int]], None]


class Sampler:
    """Chooses the tokens of one answer, one after the other.

    Args:
        prompt_T: ids before the answer; a repetition penalty counts them as seen.
        forbidden: the id that is never chosen: a photo's placeholder is no word.
        expect: adds to logits (V,) in place what is expected after the answer's tokens so far, or `None`.
    """

    def __init__(self, options: GenerationOptions, prompt_T: Tensor, forbidden: int, expect: Expect | None = None):
        self.options, self.forbidden = options, forbidden
        self._seen_T, self._expect = prompt_T, expect
        self._written: list[int] = []
        self._generator = None if options.seed is None else torch.Generator(prompt_T.device).manual_seed(options.seed)

    def __call__(self, logits_V: Tensor) -> int:
        if self._expect is not None:
            self._expect(logits_V, self._written)
        logits_V[self.forbidden] = -torch.inf
        token = next_token(logits_V, self._seen_T, self.options, self._generator)
        if self.options.repetition_penalty != 1:
            self._seen_T = torch.cat([self._seen_T, self._seen_T.new_tensor([token])])
        self._written.append(token)
        return token


def next_token(logits_V: Tensor, seen_T: Tensor, options: GenerationOptions, generator: torch.Generator | None) -> int:
    """The token that comes next; `seen_T` are the ids of prompt and answer so far."""
    logits_V = penalise_repetition(logits_V.float(), seen_T, options.repetition_penalty)
    if options.temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial(token_probabilities(logits_V, options), 1, generator=generator))


def penalise_repetition(logits_V: Tensor, seen_T: Tensor, penalty: float) -> Tensor:
    """Logits of seen tokens, divided by the penalty where positive and multiplied where negative."""
    if penalty == 1:
        return logits_V
    seen_logits_T = logits_V[seen_T]
    return logits_V.scatter(0, seen_T, torch.where(seen_logits_T < 0, seen_logits_T * penalty, seen_logits_T / penalty))


def token_probabilities(logits_V: Tensor, options: GenerationOptions) -> Tensor:
    """Probabilities (V,) after temperature, then top-k, then top-p (nucleus sampling, arXiv 1904.09751), renormalised."""
    logits_V = logits_V / options.temperature
    if 0 < options.top_k < logits_V.shape[0]:
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(options.top_k).values[-1], -torch.inf)
    probabilities_V = logits_V.softmax(-1)
    if options.top_p < 1:
        sorted_V, order_V = probabilities_V.sort(descending=True)
        likelier_V = sorted_V.cumsum(0) - sorted_V
        probabilities_V = probabilities_V.scatter(0, order_V, sorted_V.masked_fill(likelier_V >= options.top_p, 0))
        probabilities_V = probabilities_V / probabilities_V.sum()
    return probabilities_V
