"""A teacher that scores captions by what people say of photos that look alike, for a model that knows its training photos by heart.

A caption's CIDEr-D against people's captions of the same photo rewards what only these five say, too, which a model remembers and
cannot see in another photo. The teacher tells what can be seen: kernel ridge regression from a photo's features to the tf-idf of its
captions, each photo kept aside. Likeness is that of `taught_answers`; it has no language model, and can judge captions but not write any.

P photos, D features, C captions, G n-grams.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from salticid.checkpoints.load import load_processor, load_unpacked
from salticid.data.datasets.files import read_json
from salticid.data.records import CaptionedPhoto
from salticid.errors import DataError
from salticid.models.photos import read_photo
from salticid.models.phrases import pooled
from salticid.scorers.captions import CIDER_SIGMA, MAX_N, CiderD
from salticid.train.precision import DTYPES, choose_precision
from salticid.train.taught_answers import likeness

RIDGE = 0.1
BATCH = 32
FEATURES, CAPTIONS = "features.safetensors", "captions.json"
MOST_PHOTOS = 20_000
"""Above, the matrix of all pairs of photos would take more than 3.2 GB."""


class CaptionTeacher:
    """Scores captions of photos (P) by the captions of the other photos.

    Args:
        references: people's captions of each photo. features_PD: what is seen of each.

    Raises:
        DataError: not as many features as photos, fewer than two photos, or too many for the matrix of all their pairs.
    """

    def __init__(self, references: Sequence[Sequence[str]], features_PD: Tensor):
        if not 2 <= len(references) <= MOST_PHOTOS:
            raise DataError(f"{len(references)} photos with captions; the teacher compares at least 2, and at most {MOST_PHOTOS:,}")
        if len(features_PD) != len(references):
            raise DataError(f"features of {len(features_PD)} photos, captions of {len(references)}; let the teacher see them again")
        self._scorer = CiderD(references, mark_end=True)
        self._numbers = {tuple(captions): number for number, captions in enumerate(references)}
        self._weights_PP = _kept_aside(likeness(features_PD)).numpy()
        self._places: dict[tuple[str, ...], int] = {}
        photos, places, values, lengths = [], [], [], []
        for number, captions in enumerate(references):
            for caption in captions:
                weighted = self._scorer.weigh(caption)
                lengths.append(weighted.length)
                for ngram, weight in weighted.weights.items():
                    norm = weighted.norms[len(ngram) - 1]
                    if norm:
                        photos.append(number)
                        places.append(self._places.setdefault(ngram, len(self._places)))
                        values.append(weight / norm / len(captions))
        self._photos, self._ngrams, self._values = np.array(photos), np.array(places), np.array(values, dtype=np.float32)
        self._lengths = np.array(lengths)

    def knows(self, references: Sequence[str]) -> bool:
        """Whether the photo that people captioned so is one of the teacher's."""
        return tuple(references) in self._numbers

    def score(self, captions: Sequence[str], references: Sequence[str]) -> list[float]:
        """What each caption's CIDEr-D, in [0, 10], is expected to be against people's captions of a photo that looks like this one.

        The photo is found by its own captions, which have no part in the score; below zero where less is expected than of nothing.

        Raises:
            KeyError: a photo that the teacher does not know.
        """
        expected_G = self._expect(self._numbers[tuple(references)])
        return [self._score(caption, expected_G) for caption in captions]

    def _expect(self, number: int) -> np.ndarray:
        """(G,) tf-idf, each length of n-grams of norm 1 before the mean, expected of one photo's captions."""
        weights_C = self._weights_PP[number][self._photos] * self._values
        return np.bincount(self._ngrams, weights=weights_C, minlength=len(self._places))

    def _score(self, caption: str, expected_G: np.ndarray) -> float:
        weighted = self._scorer.weigh(caption)
        total = 0.0
        for ngram, weight in weighted.weights.items():
            place, norm = self._places.get(ngram), weighted.norms[len(ngram) - 1]
            if place is not None and norm:
                # An n-gram that is said twice counts once, as CIDEr-D clips it, but is in the norm as often as it is said.
                total += expected_G[place] * min(weight, self._scorer.idf(ngram)) / norm
        near_C = np.exp(-((self._lengths - weighted.length) ** 2) / (2 * CIDER_SIGMA**2))
        return float(10.0 * total / MAX_N * near_C.mean())


def see(folder: Path, photos: Sequence[CaptionedPhoto]) -> Tensor:
    """(P, D): what the vision tower of the model in `folder` sees of each photo, the mean and the maximum over its places.

    Raises:
        ModelNotFoundError, CheckpointError: see `load_model`. ImageError: a photo cannot be read.
    """
    dtype = DTYPES[choose_precision("auto")]
    tower: Any = load_unpacked(folder).vision_tower.eval().to(dtype)
    image_processor = load_processor(folder).image_processor
    tower.to(memory_format=torch.channels_last)
    seen = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(photos), BATCH), desc="photos seen", unit_scale=BATCH):
            opened = [read_photo(photo.path) for photo in photos[start : start + BATCH]]
            pixels = image_processor(opened, return_tensors="pt")["pixel_values"]
            seen.append(pooled(tower(pixels.to(dtype).contiguous(memory_format=torch.channels_last))))
    return torch.cat(seen)


def write_teacher(folder: Path, photos: Sequence[CaptionedPhoto], features_PD: Tensor) -> None:
    """What a `CaptionTeacher` is made of."""
    save_file({"features": features_PD.half().contiguous()}, folder / FEATURES)
    rows = [{"image": photo.path.name, "captions": photo.captions} for photo in photos]
    (folder / CAPTIONS).write_text(json.dumps(rows) + "\n", encoding="utf-8")


def read_teacher(folder: Path) -> CaptionTeacher:
    """The teacher that `salticid data captions` wrote.

    Raises:
        DataError: a file is missing or damaged; see also `CaptionTeacher`.
    """
    if not Path(folder).is_dir():
        raise DataError(f"there is no teacher of captions at {folder}; make it with: salticid data captions")
    rows = read_json(folder, CAPTIONS)
    try:
        references = [tuple(row["captions"]) for row in rows]
        features_PD = load_file(Path(folder) / FEATURES)["features"].float()
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise DataError(f"{folder} does not hold a teacher of captions ({error}); make it with: salticid data captions") from error
    return CaptionTeacher(references, features_PD)


def _kept_aside(likeness_PP: Tensor) -> Tensor:
    """(P, P): how much each photo's captions count in what is expected of another's; of its own nothing. Rows sum to 1.

    With G the inverse of the ridged matrix, the prediction without the photo itself weighs the others by minus G over its diagonal
    (Rasmussen and Williams 2006, section 5.4.2). What it leaves is given to the mean of all others.
    """
    photos = len(likeness_PP)
    ridged_PP = likeness_PP.double() + RIDGE * torch.eye(photos, dtype=torch.float64)
    inverse_PP = torch.cholesky_inverse(torch.linalg.cholesky(ridged_PP))
    weights_PP = (-inverse_PP / inverse_PP.diagonal()[:, None]).fill_diagonal_(0.0)
    weights_PP += (1 - weights_PP.sum(dim=1, keepdim=True)) / (photos - 1)
    return weights_PP.fill_diagonal_(0.0).float()


def ranked_above_others(teacher: CaptionTeacher, references: Sequence[Sequence[str]]) -> float:
    """Of each photo's first caption and the next photo's first, how often the teacher scores the photo's own higher; 0.5 by chance."""
    pairs = zip(references, [*references[1:], references[0]], strict=True)
    scores = [teacher.score([own[0], other[0]], own) for own, other in tqdm(list(pairs), desc="captions compared")]
    return sum(own > other for own, other in scores) / len(scores)
