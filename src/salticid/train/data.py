"""A recipe's data: sources, mixture, and the views that each photo is shown in."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from torch.utils.data import Dataset

from salticid.data.augment import Augmentation
from salticid.data.conversation import Example, Source
from salticid.data.datasets import SOURCES
from salticid.data.mixture import Mixture
from salticid.errors import ConfigurationError, DataError
from salticid.models.photos import read_photo
from salticid.train.recipe import DataRecipe

EMPTY_DRAWS = 50


def build_sources(recipe: DataRecipe) -> list[Source]:
    """Open every data set of the recipe; raises `ConfigurationError` for an unknown kind or option."""
    sources: list[Source] = []
    for source in recipe.sources:
        if source.kind not in SOURCES:
            raise ConfigurationError(f"unknown data set kind {source.kind!r}; known: {', '.join(SOURCES)}")
        try:
            sources.append(SOURCES[source.kind](Path(recipe.folder) / source.path, **source.options))
        except TypeError as error:
            raise ConfigurationError(f"data set {source.kind!r}: {error}") from error
    return sources


class TrainingData(Dataset[Example]):
    """Examples of a mixture with their photos opened and augmented; item `i` depends on the seed and `i` alone."""

    def __init__(self, recipe: DataRecipe, length: int, seed: int):
        self.mixture = Mixture(build_sources(recipe), [source.weight for source in recipe.sources], length, seed)
        self.augmentation = Augmentation(flip=recipe.flip, crop=recipe.crop)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> Example:
        example = self._draw(index)
        rng = random.Random(f"{self.seed}:{index}")
        return replace(example, images=tuple(self.augmentation(read_photo(image), example, rng) for image in example.images))

    def _draw(self, index: int) -> Example:
        """Item `index`, or the next that has anything to say: a photo may hold nothing that a writer of questions dares to ask."""
        for successor in range(index, index + EMPTY_DRAWS):
            example = self.mixture[successor % len(self.mixture)]
            if example.conversations:
                return example
        raise DataError(f"{EMPTY_DRAWS} photos in a row gave neither captions nor questions; check the options of the data sets")
