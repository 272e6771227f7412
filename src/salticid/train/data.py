"""A recipe's data: sources, mixture or epochs, and the views that each photo is shown in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from salticid.data.augment import Augmentation
from salticid.data.collate import Collator
from salticid.data.conversation import Example, Source
from salticid.data.datasets import SOURCES
from salticid.data.mixture import Mixture
from salticid.data.part import WHOLE, Part
from salticid.errors import ConfigurationError, DataError, ImageError
from salticid.models.photos import read_photo
from salticid.train.order import Epochs, group_by_modality_length, words
from salticid.train.recipe import DataRecipe, ScheduleRecipe
from salticid.train.tally import Tally

EMPTY_DRAWS = 50
NOTHING_SAID = "gave neither captions nor questions; check the options of the data sets"


def build_sources(recipe: DataRecipe) -> list[Source]:
    """Open every data set of the recipe; raises `ConfigurationError` for an unknown kind or option, or a part that is none."""
    sources: list[Source] = []
    for source in recipe.sources:
        if source.kind not in SOURCES:
            raise ConfigurationError(f"unknown data set kind {source.kind!r}; known: {', '.join(SOURCES)}")
        try:
            opened = SOURCES[source.kind](Path(recipe.folder) / source.path, **source.options)
        except TypeError as error:
            raise ConfigurationError(f"data set {source.kind!r}: {error}") from error
        sources.append(opened if source.part == WHOLE else Part(opened, *source.part))
    return sources


class TrainingData(Dataset[Example]):
    """Examples with their photos opened and augmented; item `i` depends on the seed and `i` alone.

    Args:
        recipe: the sources, and how they are shown.
        length: examples drawn from the mixture of the sources; or `None`, to show every example `epochs` times.
        step: examples of one optimizer step, within which they are grouped where the recipe asks for it.
        tally: counts what cannot be used; default, with the recipe's own limit.
        collate: tells which conversations would be too long; default, all are taken for short.

    An example without conversations, with an unreadable photo, or with nothing short enough gives way to the next.
    """

    def __init__(
        self,
        recipe: DataRecipe,
        length: int | None,
        seed: int,
        *,
        epochs: float = 1.0,
        step: int = 1,
        tally: Tally | None = None,
        collate: Collator | None = None,
    ):
        sources, weights = build_sources(recipe), [source.weight for source in recipe.sources]
        if length is None and len(set(weights)) > 1:
            raise ConfigurationError("an epoch shows every example once, whatever its weight; leave the weights out, or give steps")
        self.mixture: Any = Epochs(sources, epochs, seed) if length is None else Mixture(sources, weights, length, seed)
        self.order = self._grouped(step, seed) if recipe.group_by_modality_length else range(len(self.mixture))
        self.augmentation = Augmentation(flip=recipe.flip, crop=recipe.crop, light=recipe.light)
        self.seed, self.collate = seed, collate
        self.tally = Tally(recipe.max_unreadable) if tally is None else tally

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Example:
        problem: Exception | None = None
        for example in self._with_words(index):
            try:
                return self.show(example, random.Random(f"{self.seed}:{index}"))
            except ImageError as error:
                problem = error
                self.tally.pass_over(error)
            except DataError as error:
                problem = error
                self.tally.leave_out(len(example.conversations), whole=True)
        reason = NOTHING_SAID if problem is None else f"are of no use: {problem}"
        raise DataError(f"{EMPTY_DRAWS} photos in a row {reason}")

    def unopened(self, index: int) -> Example:
        """The example of an item, or of the next that has conversations, without its photos; raises `DataError` where many have none."""
        example = next(self._with_words(index), None)
        if example is None:
            raise DataError(f"{EMPTY_DRAWS} photos in a row {NOTHING_SAID}")
        return example

    def _with_words(self, index: int) -> Iterator[Example]:
        """Of an item and those after it, the examples that have conversations."""
        for successor in range(index, index + EMPTY_DRAWS):
            example: Example = self.mixture[self.order[successor % len(self.order)]]
            if example.conversations:
                yield example

    def show(self, example: Example, rng: random.Random) -> Example:
        if self.collate is not None:
            self.tally.leave_out(count_left_out(example, self.collate))
        photos = [read_photo(image) for image in example.images]
        if example.view is not None:
            photos = [example.view.of_image(photo) for photo in photos]
        return self.augmentation(replace(example, images=tuple(photos)), rng)

    def _grouped(self, step: int, seed: int) -> list[int]:
        """Items in grouped order, each epoch on its own. Every example is drawn once for it, without opening its photo."""
        size, length = getattr(self.mixture, "size", len(self.mixture)), len(self.mixture)
        order: list[int] = []
        for start in range(0, length, size):
            examples = [self.mixture[item] for item in range(start, min(start + size, length))]
            lengths, photos = [words(example) for example in examples], [bool(example.images) for example in examples]
            order += [start + index for index in group_by_modality_length(lengths, photos, step, seed + start)]
        return order


def build_data(recipe: DataRecipe, schedule: ScheduleRecipe, seed: int, collate: Collator) -> TrainingData:
    """The examples of a stage, all of them, in order."""
    length = None if schedule.steps is None else schedule.steps * schedule.step_examples
    return TrainingData(recipe, length, seed, epochs=schedule.epochs or 1.0, step=schedule.step_examples, collate=collate)


def count_left_out(example: Example, collate: Collator) -> int:
    """Conversations that reach past the longest sequence; raises `DataError` where all do. Under a label rule none: it cuts them."""
    if collate.max_length is None:
        return 0
    rows = collate.tokenize(example)
    return 0 if collate.label_rule is not None else len(example.conversations) - sum(max(row.conversation) for row in rows)
