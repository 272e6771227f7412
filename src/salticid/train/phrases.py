"""Fits a model's phrase head (`models.phrases`) to photos with captions, in closed form: no weight of the model itself changes.

Ridge regression from what the vision tower sees of a photo to the tf-idf of the phrases in its captions, of the rank that matters most
to what it predicts (reduced-rank regression, Izenman 1975). The scores are those of which CIDEr-D is made, so what a phrase adds is
what CIDEr-D would be expected to gain by it, times `STRENGTH`.

S photos, D features, R topics, P phrases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from salticid.errors import DataError
from salticid.models import VisionLanguageModel
from salticid.models.phrases import PADDING, PhraseHead, PhrasesConfig
from salticid.scorers.captions import MAX_N, CiderD, Ngram

TOPICS = 128
LEAST = 8
"""Photos whose captions must hold a phrase for it to be learned, and captions that must begin with it to be written so."""
RIDGE = 0.3
STRENGTH = 20.0
LONGEST = 6
"""Tokens of a phrase, at most."""
END = ("</s>", ".")
"""How the scorer marks the end of a caption, and what is written there."""
MOST_PHOTOS = 20_000


def fit_phrases(
    model: VisionLanguageModel, tokenizer: Any, references: Sequence[Sequence[str]], pooled_SD: Tensor, strength: float = STRENGTH
) -> None:
    """Give the model a phrase head, in place of one that it may have.

    Args:
        references: people's captions of each photo. pooled_SD: what is seen of each, see `models.phrases.pooled`.

    Raises:
        DataError: too few photos to say anything, or too many for the matrix of their phrases.
    """
    if not 2 <= len(references) <= MOST_PHOTOS:
        raise DataError(f"{len(references)} photos with captions; phrases are learned from 2 at least, and {MOST_PHOTOS:,} at most")
    scorer = CiderD(references, mark_end=True)
    targets_SP, phrases, norms = _targets(scorer, references)
    spelled = _spellings(phrases, references, tokenizer)
    if not spelled:
        raise DataError(f"no phrase is in the captions of {LEAST} of these {len(references)} photos; more photos are needed")
    kept = sorted({number for number, _ in spelled})
    place = {number: index for index, number in enumerate(kept)}
    longest = max(len(ids) for _, ids in spelled)
    topics = min(TOPICS, len(kept), pooled_SD.shape[1])
    config = PhrasesConfig(len(kept), topics, len(spelled), longest)
    head = PhraseHead(config, pooled_SD.shape[1] // 2)
    mean_P = targets_SP.mean(dim=0)[kept]
    worth_P = torch.tensor([scorer.idf(phrases[number]) / norms[len(phrases[number]) - 1] for number in kept]) * strength * 10 / MAX_N
    with torch.no_grad():
        roots_SD = head.even(pooled_SD.float())
        head.mean.copy_(roots_SD.mean(dim=0))
        head.deviation.copy_(roots_SD.std(dim=0, correction=0) + 1e-3)
        topics_RD, weights_PR = reduced_rank(head.even(pooled_SD.float()), targets_SP[:, kept] - mean_P, topics)
        head.topics.weight.copy_(topics_RD)
        head.topics.bias.zero_()
        head.expected.weight.copy_(weights_PR * worth_P[:, None])
        head.expected.bias.copy_(mean_P * worth_P)
        head.tokens.copy_(torch.tensor([[PADDING] * (longest - len(ids)) + ids for _, ids in spelled]))
        head.numbers.copy_(torch.tensor([place[number] for number, _ in spelled]))
    model.phrases = head.to(model.dtype)
    model.config.phrases = asdict(config)


def reduced_rank(features_SD: Tensor, targets_SP: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(R, D) and (P, R): ridge regression through `rank` numbers, those that tell most of what the regression predicts."""
    features_SD = features_SD.double()
    width = features_SD.shape[1]
    products_DD = features_SD.T @ features_SD + RIDGE * width * torch.eye(width, dtype=torch.float64)
    root_DD = torch.linalg.cholesky(products_DD)
    weights_DP = torch.cholesky_solve(features_SD.T @ targets_SP.double(), root_DD)
    spread_DP = root_DD.T @ weights_DP
    left_DR = torch.linalg.eigh(spread_DP @ spread_DP.T).eigenvectors[:, -rank:]
    lengths_R = (spread_DP.T @ left_DR).norm(dim=0).clamp(min=1e-12)
    right_PR = spread_DP.T @ left_DR / lengths_R
    return (weights_DP @ right_PR).T.float(), right_PR.float()


def _targets(scorer: CiderD, references: Sequence[Sequence[str]]) -> tuple[Tensor, list[Ngram], list[float]]:
    """(S, P) mean tf-idf of each phrase in a photo's captions, each length of norm 1; the phrases; the mean norm of each length."""
    weighed = [[scorer.weigh(caption) for caption in captions] for captions in references]
    photos = Counter(ngram for captions in weighed for ngram in set().union(*(each.weights for each in captions)))
    phrases = [ngram for ngram, count in photos.items() if count >= LEAST]
    places = {ngram: number for number, ngram in enumerate(phrases)}
    targets_SP = torch.zeros(len(references), len(phrases))
    for photo, captions in enumerate(weighed):
        for each in captions:
            found = [(places[ngram], weight / each.norms[len(ngram) - 1]) for ngram, weight in each.weights.items() if ngram in places]
            numbers, values = [number for number, _ in found], torch.tensor([value for _, value in found])
            targets_SP[photo, numbers] += values / len(captions)
    every = [each for captions in weighed for each in captions]
    return targets_SP, phrases, [sum(each.norms[n] for each in every) / len(every) for n in range(MAX_N)]


def _spellings(phrases: Sequence[Ngram], references: Sequence[Sequence[str]], tokenizer: Any) -> list[tuple[int, list[int]]]:
    """Phrases in tokens, by their numbers: inside a caption, and where many captions begin so, at its start. The last word is one token."""
    ids: dict[str, list[int]] = {}

    def spell(text: str) -> list[int]:
        if text not in ids:
            ids[text] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[text]

    begun = Counter(tuple(caption.lower().split()[:length]) for own in references for caption in own for length in range(1, MAX_N + 1))
    found = []
    for number, phrase in enumerate(phrases):
        inside = [spell(END[1] if word == END[0] else f" {word}") for word in phrase]
        start = [spell(phrase[0].capitalize()), *inside[1:]]
        for words in [inside, start] if begun[phrase] >= LEAST else [inside]:
            written = [token for word in words for token in word]
            if len(words[-1]) == 1 and len(written) <= LONGEST:
                found.append((number, written))
    return found
