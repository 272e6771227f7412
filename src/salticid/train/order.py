"""In which order a stage sees its examples: whole epochs in place of a mixture, and photos apart from text."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence

from salticid.data.conversation import Example, Source
from salticid.data.mixture import shuffled
from salticid.errors import ConfigurationError


class Epochs:
    """Every example of every source once per epoch, each epoch in an order of its own; otherwise as `Mixture`.

    Item i depends on `seed` and i alone, so that training resumes anywhere.
    """

    def __init__(self, sources: Sequence[Source], epochs: float, seed: int) -> None:
        self.sources, self.seed = list(sources), seed
        self._ends = list(itertools.accumulate(len(source) for source in self.sources))
        if not self._ends or not self._ends[-1]:
            raise ConfigurationError("the data sets hold no examples; an epoch needs at least one")
        self.size = self._ends[-1]
        self.length = max(1, round(self.size * epochs))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> Example:
        if not 0 <= item < self.length:
            raise IndexError(f"item {item} of {self.length}")
        epoch, place = divmod(item, self.size)
        number = shuffled(place, self.size, random.Random(f"{self.seed}/order/{epoch}").getrandbits(48))
        source = bisect.bisect_right(self._ends, number)
        index = number - (self._ends[source] - len(self.sources[source]))
        return self.sources[source].example(index, random.Random(f"{self.seed}/example/{epoch}/{number}").getrandbits(48))


def words(example: Example) -> int:
    """How long an example is, roughly and quickly."""
    return sum(len(f"{turn.question} {turn.answer}".split()) for turns in example.conversations for turn in turns)


def group_by_modality_length(lengths: Sequence[int], photos: Sequence[bool], step: int, seed: int) -> list[int]:
    """A shuffled order in which each optimizer step of `step` examples has photos alone or text alone, longest first within a step.

    Batches of one step then hold rows of like length, so that less is padded, and the gradient of a step is the same. What is left
    over of both kinds comes last. Source: LLaVA's `LengthGroupedSampler` with modality lengths.

    Args:
        lengths, photos: of each example its length, and whether it has a photo.
    """
    chance = random.Random(f"{seed}/modality")
    steps: list[list[int]] = []
    left_over: list[int] = []
    for kind in (True, False):
        own = [index for index, has_photo in enumerate(photos) if has_photo == kind]
        chance.shuffle(own)
        whole = len(own) - len(own) % step
        steps.extend(sorted(own[start : start + step], key=lambda index: -lengths[index]) for start in range(0, whole, step))
        left_over.extend(own[whole:])
    chance.shuffle(steps)
    return [index for group in steps for index in group] + left_over
