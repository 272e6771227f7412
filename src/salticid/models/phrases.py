"""What people say of photos like this one: the weight of each phrase in their captions, as the photo lets expect it.

A small language model that has learned its training photos by heart says less about a new one than its vision tower sees. Two linear
layers, fitted in closed form (`train.phrases`), tell from what the tower sees which phrases of one to four words people would use;
in a caption, what is expected of the phrases that a token would complete is added to its logit. It is the shallow fusion of speech
recognition (Gulcehre et al., arXiv 1503.03535), with n-grams whose weights depend on the photo.

I images, N patches, D width of the features, R topics, P phrases, E spellings, L longest of them in tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from salticid.errors import ConfigurationError

PADDING = -1


@dataclass(frozen=True)
class PhrasesConfig:
    """Sizes. count: phrases. topics: numbers through which a photo tells of all of them. spellings: ways to write phrases, in tokens;
    longest: of one, at most."""

    count: int
    topics: int
    spellings: int
    longest: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PhrasesConfig:
        """Raises `ConfigurationError` for an unknown or missing option, or a value that is no whole number above zero."""
        known = [field.name for field in fields(cls)]
        if set(values) != set(known):
            raise ConfigurationError(f"phrases has the options {', '.join(sorted(values)) or 'none'}; give {', '.join(known)}")
        if wrong := [name for name in known if type(values[name]) is not int or values[name] < 1]:
            raise ConfigurationError(f"phrases.{wrong[0]} is {values[wrong[0]]!r}; it must be a whole number, 1 or more")
        return cls(**values)


class PhraseHead(nn.Module):
    """Features of a photo to what each phrase adds to the logit of its last token, in nats."""

    mean: Tensor
    deviation: Tensor
    tokens: Tensor
    numbers: Tensor

    def __init__(self, config: PhrasesConfig, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * width))
        self.register_buffer("deviation", torch.ones(2 * width))
        self.topics = nn.Linear(2 * width, config.topics)
        self.expected = nn.Linear(config.topics, config.count)
        # Each row a spelling, its tokens at the end and padding before them; and of which phrase it is.
        self.register_buffer("tokens", torch.full((config.spellings, config.longest), PADDING, dtype=torch.int32))
        self.register_buffer("numbers", torch.zeros(config.spellings, dtype=torch.int32))
        self._completions: dict[tuple[int, ...], tuple[Tensor, Tensor]] | None = None

    def forward(self, features_IND: Tensor) -> Tensor:
        """(I, N, D) -> (I, P)."""
        return self.expected(self.topics(self.even(pooled(features_IND)).to(features_IND.dtype)))

    def even(self, pooled_ID: Tensor) -> Tensor:
        """Signed roots, so that a few large ones do not decide, of the same spread."""
        return (pooled_ID.sign() * pooled_ID.abs().sqrt() - self.mean.to(pooled_ID)) / self.deviation.to(pooled_ID)

    def add_to(self, logits_V: Tensor, scores_P: Tensor, written: Sequence[int]) -> None:
        """Add in place what phrases let expect of the next token after those `written`; a word alone counts once."""
        completions, longest = self._completed_by(), self.tokens.shape[1]
        for length in range(min(len(written), longest - 1) + 1):
            found = completions.get(tuple(written[len(written) - length :]))
            if found is None:
                continue
            tokens, numbers = found
            gains = scores_P[numbers.to(scores_P.device)].to(logits_V)
            if length == 0 and written:
                gains = gains.masked_fill(torch.isin(tokens, torch.tensor(list(written))).to(gains.device), 0)
            logits_V.index_add_(0, tokens.to(logits_V.device), gains)

    def _completed_by(self) -> dict[tuple[int, ...], tuple[Tensor, Tensor]]:
        """By the tokens before it, which tokens complete a phrase, and the phrases' numbers. Read once: the phrases do not change."""
        if self._completions is None:
            grouped: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
            for number, row in zip(self.numbers.tolist(), self.tokens.tolist(), strict=True):
                *before, last = (token for token in row if token != PADDING)
                tokens, numbers = grouped.setdefault(tuple(before), ([], []))
                tokens.append(last)
                numbers.append(number)
            self._completions = {key: (torch.tensor(tokens), torch.tensor(numbers)) for key, (tokens, numbers) in grouped.items()}
        return self._completions


def pooled(features_IND: Tensor) -> Tensor:
    """(I, N, D) -> (I, 2 D): the mean and the maximum over the patches, in float32."""
    features_IND = features_IND.float()
    return torch.cat([features_IND.mean(dim=1), features_IND.amax(dim=1)], dim=1)
