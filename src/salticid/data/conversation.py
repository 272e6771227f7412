"""What every reader of a data set gives: photos, and conversations about them. Pure data, no tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

from salticid.data.scenes import Scene
from salticid.data.views import View

ImageReference = str | os.PathLike[str] | bytes | Any
"""Anything that `salticid.models.photos.read_photo` opens; readers give paths."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer. Loss is taken on the answer alone."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """Photos, and conversations that are held about them.

    The photos stand at the start of every conversation's first question. Conversations are independent of each other: they are
    packed behind one shared image prefix for speed, and none sees another's words. `references` are all captions that people wrote
    for the photo, where there are any: what a caption made by the model is scored against. `view`: the window through which the photos
    are to be shown, or what is to be pasted onto them, for which the words are true; `None`: as they are.
    """

    images: tuple[ImageReference, ...]
    conversations: tuple[tuple[Turn, ...], ...]
    references: tuple[str, ...] = ()
    view: View | Scene | None = None


class Source(Protocol):
    """A data set of photos. `example` may draw among a photo's questions, with the given seed and nothing else."""

    def __len__(self) -> int: ...

    def example(self, index: int, seed: int) -> Example:
        """The photo at `index`, with conversations drawn by `seed`; the same arguments give the same example."""
        ...
