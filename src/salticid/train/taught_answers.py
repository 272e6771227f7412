"""Answers of a teacher to questions about photos, for a small language model that has too few of people's to learn from.

The teacher has no language model. Half of it is kernel ridge regression from a question's words and a photo's features to one of the
answers that people gave. Two cases are as alike as their questions, times how alike their photos are; so what is usually answered to such
a question weighs, and more where the photos look alike. The other half is small networks that look at the photo's places
(`answer_network`). It never learns by heart what it is asked: it answers about a photo from the other photos only, also questions that
people asked of photos that look alike. Why answers of a second model teach: Hinton et al., arXiv 1503.02531.

Q questions, P photos, A answers, W words and runs of words, N places, D features.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from salticid.checkpoints.load import load_processor, load_unpacked
from salticid.data.records import QuestionedPhoto
from salticid.errors import DataError
from salticid.train.answer_network import Looker, even
from salticid.train.feature_cache import cached_features

LONGEST_RUN = 3
"""Words of a question that are taken together at most."""
PHOTO_WEIGHT = 3.0
"""What a photo that looks the same adds to a question's likeness of 1."""
RIDGE = 0.5
NETWORKS = 2
"""That look, each begun by another chance; their mean counts as much as the kernel."""
MOST_QUESTIONS = 20_000
"""Above, the matrix of all pairs of questions would take more than 1.6 GB."""


@dataclass(frozen=True, slots=True)
class Taught:
    """A question of one photo with the teacher's answer; `given` is what people answered, None where they were not asked."""

    photo: int
    question: str
    answer: str
    given: str | None


class AnswerTeacher:
    """Answers questions (Q) about photos (P) from those that people answered.

    Args:
        features_PND: what is seen at each place of each photo. networks: that look; without any the kernel answers alone.

    Raises:
        DataError: there are no questions, or too many for the matrix of all their pairs.
    """

    def __init__(self, photos: Sequence[QuestionedPhoto], features_PND: Tensor, networks: int = NETWORKS):
        self.asked = [(number, question, answer) for number, photo in enumerate(photos) for question, answer in photo.questions]
        if not 0 < len(self.asked) <= MOST_QUESTIONS:
            raise DataError(f"{len(self.asked)} questions; the teacher takes 1 to {MOST_QUESTIONS}: give it fewer photos")
        self.photo_Q = torch.tensor([number for number, _, _ in self.asked])
        self.answers = sorted({answer for _, _, answer in self.asked})
        places = {answer: place for place, answer in enumerate(self.answers)}
        self.answer_Q = torch.tensor([places[answer] for _, _, answer in self.asked])
        known = dict.fromkeys(run for _, question, _ in self.asked for run in sorted(runs(question)))
        self.places = {run: place for place, run in enumerate(known)}
        self.words_QW = self._words([question for _, question, _ in self.asked])
        self.likeness_PP = likeness(features_PND.mean(dim=1))
        self.weights_PP = 1 + PHOTO_WEIGHT * self.likeness_PP
        self.networks, self.even_PND = networks, even(features_PND) if networks else None

    def answer(self, questions: Sequence[str], photo_N: Tensor, without: Sequence[int] = ()) -> list[str]:
        """Of each of N questions about the photo of that number, by what is known of all photos but those of `without`."""
        left_out_P = torch.zeros(len(self.likeness_PP), dtype=torch.bool)
        left_out_P[list(without)] = True
        kept_K = (~left_out_P[self.photo_Q]).nonzero()[:, 0]
        scores_NA = self._compare(questions, photo_N, kept_K)
        if self.even_PND is not None:
            scores_NA = scores_NA + self._look(self.even_PND, questions, photo_N, kept_K)
        return [self.answers[place] for place in scores_NA.argmax(dim=1)]

    def _compare(self, questions: Sequence[str], photo_N: Tensor, kept_K: Tensor) -> Tensor:
        """(N, A) from the questions and photos that are most alike."""
        known_KW, known_K = self.words_QW.index_select(0, kept_K), self.photo_Q[kept_K]
        kernel_KK = _products(known_KW, known_KW) * self.weights_PP[known_K][:, known_K]
        factor_KK = torch.linalg.cholesky(kernel_KK + RIDGE * torch.eye(len(kept_K)))
        targets_KA = torch.nn.functional.one_hot(self.answer_Q[kept_K], len(self.answers)).float()
        weights_KA = torch.cholesky_solve(targets_KA, factor_KK)
        kernel_NK = _products(self._words(questions), known_KW) * self.weights_PP[photo_N][:, known_K]
        return kernel_NK @ weights_KA

    def _look(self, even_PND: Tensor, questions: Sequence[str], photo_N: Tensor, kept_K: Tensor) -> Tensor:
        """(N, A) from networks that look, their mean."""
        known, photo_K, answer_K = [self.asked[number][1] for number in kept_K.tolist()], self.photo_Q[kept_K], self.answer_Q[kept_K]
        lookers = (Looker(even_PND, known, photo_K, answer_K, len(self.answers), seed) for seed in range(self.networks))
        return torch.stack([looker.answer(questions, photo_N) for looker in lookers]).mean(dim=0)

    def _words(self, questions: Sequence[str]) -> Tensor:
        """Sparse (N, W): which runs of words each question has, to a length of 1 with those that are new."""
        rows, columns, values = [], [], []
        for row, question in enumerate(questions):
            found = runs(question)
            known = [self.places[run] for run in found if run in self.places]
            rows += [row] * len(known)
            columns += known
            values += [len(found) ** -0.5] * len(known)
        return torch.sparse_coo_tensor(
            torch.tensor([rows, columns], dtype=torch.long), values, (len(questions), len(self.places)), check_invariants=True
        ).coalesce()


def teach(
    photos: Sequence[QuestionedPhoto],
    features_PND: Tensor,
    borrowed: int = 30,
    alike: int = 30,
    folds: int = 5,
    seed: int = 0,
    networks: int = NETWORKS,
) -> Iterator[Taught]:
    """The teacher's answers to every photo's own questions, and to `borrowed` more of the `alike` photos that look most like it.

    Photos are split by chance into `folds` parts; answers about the photos of a part come from the other parts alone.

    Raises:
        DataError: see `AnswerTeacher`; also for fewer photos than parts.
    """
    if len(photos) < folds:
        raise DataError(f"{len(photos)} photos with questions; the teacher needs {folds} at least")
    teacher, chance = AnswerTeacher(photos, features_PND, networks), random.Random(seed)
    numbers = list(range(len(photos)))
    chance.shuffle(numbers)
    nearest_PP = teacher.likeness_PP.clone().fill_diagonal_(0).argsort(dim=1, descending=True)
    for part in tqdm(range(folds), desc="parts of the photos answered about"):
        without = numbers[part::folds]
        asked: list[tuple[int, str, str | None]] = []
        for number in without:
            own = dict(photos[number].questions)
            others = {question for near in nearest_PP[number, :alike].tolist() for question, _ in photos[near].questions} - own.keys()
            asked += [(number, question, given) for question, given in own.items()]
            asked += [(number, question, None) for question in chance.sample(sorted(others), min(borrowed, len(others)))]
        told = teacher.answer([question for _, question, _ in asked], torch.tensor([number for number, _, _ in asked]), without)
        for (number, question, given), answer in zip(asked, told, strict=True):
            yield Taught(number, question, answer, given)


def seen_features(folder: Path, photos: Sequence[QuestionedPhoto]) -> Tensor:
    """(P, N, D): what the vision tower of the model in `folder` sees of each photo.

    Raises:
        ModelNotFoundError, CheckpointError: see `load_model`. ImageError: a photo cannot be read.
    """
    tower, image_processor = load_unpacked(folder).vision_tower.eval(), load_processor(folder).image_processor
    with TemporaryDirectory() as cache:
        features_PND = cached_features(Path(cache), tower, image_processor, [photo.path for photo in photos])
        return torch.from_numpy(features_PND.astype(np.float32))


def runs(question: str) -> set[str]:
    """Words of a question, and what stands next to each other, up to `LONGEST_RUN` words; its start and end count as words."""
    words = ["<", *question.lower().split(), ">"]
    return {" ".join(words[at : at + length]) for length in range(1, LONGEST_RUN + 1) for at in range(len(words) - length + 1)}


def likeness(features_PD: Tensor) -> Tensor:
    """(P, P) of photos, 1 where they are the same: exp(cosine - 1) of features that have the same spread over all photos.

    Their roots are taken first, with their signs, so that a few large ones do not decide (Perronnin et al., 2010, power normalisation).
    """
    roots_PD = features_PD.sign() * features_PD.abs().sqrt()
    even_PD = (roots_PD - roots_PD.mean(dim=0)) / (roots_PD.std(dim=0, correction=0) + 1e-3)
    unit_PD = torch.nn.functional.normalize(even_PD, dim=1)
    return (unit_PD @ unit_PD.T - 1).exp()


def _products(one_NW: Tensor, other_KW: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse.mm(one_NW, other_KW.T).to_dense()
