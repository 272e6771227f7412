"""A small network that answers questions about photos by looking at their places, with no language model.

Stacked attention (Yang et al., arXiv 1511.02274): a recurrent network reads the question; what it has read chooses the places to look at,
what is seen there is added to it and chooses again; a layer on top tells which of the known answers it is. So, unlike the kernel of
`taught_answers`, it can look where a question points; learned from the same few questions, it errs elsewhere.

Q questions, P photos, A answers, L words of the longest question, N places, D features, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

WIDTH = 256
LOOKS = 2
DROPOUT = 0.5
ROUNDS = 12
BATCH = 100
LEARNING_RATE = 2e-3
SMOOTHING = 0.05
SIDE = 5
"""Places a side at most; finer ones are averaged."""
DIRECTIONS = 256
"""In which features vary most, at most; others are left out."""
PADDING, UNKNOWN = 0, 1


class AnswerNetwork(nn.Module):
    """Scores (Q, A) of the known answers, from words (Q, L), their numbers (Q) and features of the photos' places (Q, N, D)."""

    def __init__(self, words: int, answers: int, places: int, features: int):
        super().__init__()
        self.embed = nn.Embedding(words, WIDTH, padding_idx=PADDING)
        self.read = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.see = nn.Linear(features, WIDTH)
        self.place_NW = nn.Parameter(torch.randn(places, WIDTH) * 0.02)
        self.from_seen = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LOOKS))
        self.from_asked = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LOOKS))
        self.weigh = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(LOOKS))
        self.tell = nn.Linear(WIDTH, answers)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, words_QL: Tensor, length_Q: Tensor, features_QND: Tensor) -> Tensor:
        read_QLW, _ = self.read(self.drop(self.embed(words_QL)))
        asked_QW = read_QLW[torch.arange(len(words_QL)), length_Q - 1]
        seen_QNW = self.see(self.drop(features_QND)).tanh() + self.place_NW
        for from_seen, from_asked, weigh in zip(self.from_seen, self.from_asked, self.weigh, strict=True):
            both_QNW = (from_seen(seen_QNW) + from_asked(self.drop(asked_QW))[:, None]).tanh()
            asked_QW = asked_QW + (weigh(self.drop(both_QNW)).softmax(dim=1) * seen_QNW).sum(dim=1)
        return self.tell(self.drop(asked_QW))


class Looker:
    """Probabilities of answers, learned from questions (Q) about photos.

    Args:
        features_PND: of all photos, from `even`. photo_Q: which photo each question is about. answer_Q: which of `answers` was given.
    """

    def __init__(self, features_PND: Tensor, questions: Sequence[str], photo_Q: Tensor, answer_Q: Tensor, answers: int, seed: int = 0):
        self.features_PND = features_PND
        known = dict.fromkeys(word for question in questions for word in question.lower().split())
        self.words = {word: number for number, word in enumerate(known, UNKNOWN + 1)}
        words_QL, length_Q = self._read(questions)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = AnswerNetwork(len(self.words) + UNKNOWN + 1, answers, *features_PND.shape[1:])
            batches = max(1, len(questions) // BATCH)
            optimizer = torch.optim.AdamW(self.network.parameters(), LEARNING_RATE, weight_decay=1e-4)
            rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=ROUNDS * batches, pct_start=0.1)
            for _ in range(ROUNDS):
                for few in torch.randperm(len(questions)).tensor_split(batches):
                    scores_QA = self.network(words_QL[few], length_Q[few], features_PND[photo_Q[few]])
                    cross_entropy(scores_QA, answer_Q[few], label_smoothing=SMOOTHING).backward()
                    nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
                    optimizer.step()
                    optimizer.zero_grad()
                    rate.step()
        self.network.eval()

    @torch.inference_mode()
    def answer(self, questions: Sequence[str], photo_Q: Tensor) -> Tensor:
        """(Q, A) probabilities."""
        words_QL, length_Q = self._read(questions)
        pieces = zip(words_QL.split(1000), length_Q.split(1000), photo_Q.split(1000), strict=True)
        return torch.cat([self.network(words, length, self.features_PND[photo]) for words, length, photo in pieces]).softmax(dim=1)

    def _read(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers of the words (Q, L), padded behind, and how many there are (Q); no words count as one that is not known."""
        numbers = [
            torch.tensor([self.words.get(word, UNKNOWN) for word in question.lower().split()] or [UNKNOWN]) for question in questions
        ]
        return nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=PADDING), torch.tensor([len(n) for n in numbers])


def even(features_PND: Tensor) -> Tensor:
    """Features (P, n, d) that vary equally, along at most `DIRECTIONS`; of a square of places `SIDE` a side at most are left.

    Their roots are taken first, as in `taught_answers.likeness`.
    """
    photos, places, features = features_PND.shape
    side = math.isqrt(places)
    if side * side == places and side > SIDE:
        square_PDHW = features_PND.transpose(1, 2).reshape(photos, features, side, side)
        features_PND = adaptive_avg_pool2d(square_PDHW, SIDE).flatten(2).transpose(1, 2)
    roots_PND = features_PND.sign() * features_PND.abs().sqrt()
    apart_PND = roots_PND - roots_PND.mean(dim=(0, 1))
    flat_MD = apart_PND.flatten(0, 1)
    variance_D, directions_DD = torch.linalg.eigh(flat_MD.T @ flat_MD / len(flat_MD))
    spread_d = variance_D[-DIRECTIONS:].clamp(min=0).sqrt()
    return apart_PND @ directions_DD[:, -DIRECTIONS:] / (spread_d + 0.1 * spread_d.max() + 1e-6)
