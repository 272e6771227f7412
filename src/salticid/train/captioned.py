"""Photos with texts for Q-Former pretraining: each with one of its captions, or with what is true of the view that it is shown in."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from salticid.data.augment import Augmentation
from salticid.data.boxes import Region, parse_boxes
from salticid.data.caption_text import clean_caption, tokenize_captions
from salticid.data.conversation import Example, Turn
from salticid.data.mixture import shuffled
from salticid.data.records import CaptionedPhoto
from salticid.errors import DataError, ImageError
from salticid.models.photos import read_photo
from salticid.train.data import TrainingData, build_sources
from salticid.train.qformer_recipe import CaptionDataRecipe
from salticid.train.recipe import DataRecipe
from salticid.train.tally import Tally

NO_NAME = "nothing"
UNREADABLE = 50  # photos in a row that give way to the next


def captioned_photos(recipe: CaptionDataRecipe) -> list[CaptionedPhoto]:
    """Every photo of the data sets that has captions, once, in their order.

    Raises:
        DataError: fewer than two photos have captions, or photos are no files. ConfigurationError: see the data sets.
    """
    captions: dict[Path, list[str]] = {}
    for source in build_sources(DataRecipe(folder=recipe.folder, sources=recipe.sources)):
        for index in range(len(source)):
            example = source.example(index, 0)
            if written := [caption for caption in _captions(example, recipe.captions) if clean_caption(caption)]:
                captions.setdefault(_path(example), []).extend(written)
    if len(captions) < 2:
        raise DataError(
            f"{len(captions)} photos have captions (data.captions: {recipe.captions}), and a photo is told from others: give more data, "
            'or set data.captions to "answers" where every answer is a caption'
        )
    return [CaptionedPhoto(path, tuple(dict.fromkeys(written))) for path, written in captions.items()]


def _captions(example: Example, kind: str) -> Sequence[str]:
    if kind == "references":
        return example.references
    return [turn.answer for turns in example.conversations for turn in turns]


def _path(example: Example) -> Path:
    if len(example.images) != 1 or not isinstance(example.images[0], str | Path):
        raise DataError("Q-Former pretraining reads one photo file per example; unpack archives of photos first")
    return Path(example.images[0])


def in_turn(item: int, count: int, seed: int) -> int:
    """Which of `count` things is shown: each once per epoch, in an order that the epoch and the seed decide."""
    epoch, place = divmod(item, count)
    return shuffled(place, count, random.Random(f"{seed}/order/{epoch}").getrandbits(48))


class PhotosInTurn(Dataset[dict[str, Any]], ABC):
    """`length` views of photos; item `i` depends on the seed and `i` alone. An epoch shows each photo once, in an order of its own.

    A photo that cannot be read gives way to the next.
    """

    def __init__(self, photos: Sequence[Any], length: int, seed: int, augmentation: Augmentation, tally: Tally):
        self.photos, self.length, self.seed, self.augmentation, self.tally = photos, length, seed, augmentation, tally

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> dict[str, Any]:
        problem: Exception | None = None
        for successor in range(item, item + UNREADABLE):
            number = in_turn(successor, len(self.photos), self.seed)
            try:
                return self.show(number, random.Random(f"{self.seed}/caption/{item}"))
            except ImageError as error:
                problem = error
                self.tally.pass_over(error)
        raise DataError(f"{UNREADABLE} photos in a row are unreadable; the last: {problem}")

    @abstractmethod
    def show(self, number: int, chance: random.Random) -> dict[str, Any]:
        """One view of the photo of that number; raises `ImageError`."""


class CaptionPairs(PhotosInTurn):
    """Photos, each with one of its captions.

    Args:
        features: (P, N, D), what the tower sees of each photo, in place of the photos.
    """

    def __init__(
        self,
        photos: Sequence[CaptionedPhoto],
        length: int,
        seed: int,
        augmentation: Augmentation,
        tally: Tally,
        features: np.ndarray | None = None,
    ):
        super().__init__(photos, length, seed, augmentation, tally)
        self.features = features

    def show(self, number: int, chance: random.Random) -> dict[str, Any]:
        """`photo` (its number), `caption`, and `image` or `features` (N, D)."""
        caption = chance.choice(self.photos[number].captions)
        if self.features is not None:
            return {"photo": number, "caption": caption, "features": torch.from_numpy(np.array(self.features[number]))}
        example = Example((read_photo(self.photos[number].path),), ((Turn("", caption),),))
        shown = self.augmentation(example, chance)
        return {"photo": number, "caption": shown.conversations[0][0].answer, "image": shown.images[0]}


class DrawnPairs(Dataset[dict[str, Any]]):
    """Pairs of a mixture whose examples are drawn anew: the view of a photo, and all answers of the example as one text.

    Every example counts as a photo of its own, for its text need not be true of another view of the same.

    Args:
        data: the examples; each epoch shows all of them, in an order of its own.
        features: (P, N, D), what the tower sees of each example's view, in place of the views.
    """

    def __init__(self, data: TrainingData, length: int, features: np.ndarray | None = None):
        self.data, self.length, self.features, self.tally = data, length, features, data.tally

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> dict[str, Any]:
        """`photo` (the example's number), `caption`, and `image` or `features` (N, D)."""
        number = in_turn(item, len(self.data), self.data.seed)
        if self.features is not None:
            caption = answers_of(self.data.unopened(number))
            return {"photo": number, "caption": caption, "features": torch.from_numpy(np.array(self.features[number]))}
        example = self.data[number]
        return {"photo": number, "caption": answers_of(example), "image": example.images[0]}


def answers_of(example: Example) -> str:
    """All answers about a photo as one text."""
    return " ".join(turn.answer for turns in example.conversations for turn in turns)


class DrawnViews:
    """The views of examples alone, each opened when it is asked for, as `cached_features` reads them."""

    def __init__(self, data: TrainingData):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> Any:
        return self.data.show(self.data.unopened(number), random.Random(number)).images[0]


class CaptionCollator:
    """Pairs to what `QFormerPretrainingModel` takes; with `boxed`, what the boxes of each text say too."""

    def __init__(self, tokenizer: Any, image_processor: Any, max_tokens: int, boxed: bool = False):
        self.tokenizer, self.image_processor, self.max_tokens, self.boxed = tokenizer, image_processor, max_tokens, boxed

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids_BT, mask_BT = tokenize_captions(self.tokenizer, [pair["caption"] for pair in pairs], self.max_tokens)
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT, "photo_ids": torch.tensor([pair["photo"] for pair in pairs])}
        if self.boxed:
            batch |= self._boxes([parse_boxes(pair["caption"]) for pair in pairs])
        if "features" in pairs[0]:
            return {**batch, "image_features": torch.stack([pair["features"] for pair in pairs]).float()}
        images = [pair["image"] for pair in pairs]
        return {**batch, "pixel_values": self.image_processor(images, return_tensors="pt")["pixel_values"]}

    def _boxes(self, regions_B: Sequence[Sequence[Region]]) -> dict[str, torch.Tensor]:
        """`boxes` (B, K, 4), `names` (B, K), and `name_ids` and `name_mask` (U, T) of the batch's names. A box without one is left out."""
        named_B = [[region for region in regions if region.label] for regions in regions_B]
        labels = sorted({region.label for regions in named_B for region in regions}) or [NO_NAME]
        most = max(1, *map(len, named_B))
        boxes_BK4, names_BK = torch.zeros(len(named_B), most, 4), torch.full((len(named_B), most), -1)
        for row, regions in enumerate(named_B):
            for column, region in enumerate(regions):
                boxes_BK4[row, column] = torch.tensor([region.left, region.top, region.right, region.bottom])
                names_BK[row, column] = labels.index(region.label)
        ids_UT, mask_UT = tokenize_captions(self.tokenizer, labels, self.max_tokens)
        return {"boxes": boxes_BK4, "names": names_BK, "name_ids": ids_UT, "name_mask": mask_UT}
