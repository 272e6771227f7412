"""Image tokens of the photos that were seen last, so that further questions about a photo cost no second look."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from salticid.engine import patch_attention
from salticid.errors import InputError
from salticid.models import VisionLanguageModel
from salticid.models.photos import ImageSource, read_photo


class _Seen(NamedTuple):
    """Of one photo: its image tokens, and what its phrases add to a caption, where that is known."""

    tokens_1ND: Tensor
    phrases_P: Tensor | None = None


class PhotoFeatures:
    """Projected image tokens by photo, the `size` latest kept. A file is known by path, time and size, other photos by their pixels."""

    def __init__(self, model: VisionLanguageModel, image_processor: Any, size: int = 8):
        self.model, self.image_processor, self.size = model, image_processor, size
        self._kept: OrderedDict[Hashable, _Seen] = OrderedDict()
        patch_attention.use_for(model.vision_tower.model)

    def __call__(self, photos: Sequence[ImageSource]) -> Tensor:
        """At least one photo to (I, N, D).

        Raises:
            ImageError: a photo cannot be read.
        """
        return torch.cat([self._see(photo).tokens_1ND for photo in photos])

    def phrase_scores(self, photo: ImageSource) -> Tensor | None:
        """(P,) from the model's phrase head; `None` without one, and where image tokens alone were kept. Raises as a call does."""
        return self._see(photo).phrases_P

    def keep(self, photos: Sequence[ImageSource], image_features_IND: Tensor) -> None:
        """Photos whose image tokens are known already, as many as there may be.

        Raises:
            InputError: not as many photos as features. ImageError: a photo cannot be read.
        """
        if len(photos) != len(image_features_IND):
            raise InputError(f"{len(photos)} photos but image tokens of {len(image_features_IND)}; give one row of tokens for each photo")
        self.size = max(self.size, len(photos))
        for photo, features_ND in zip(photos, image_features_IND, strict=True):
            self._keep(_key(photo)[0], _Seen(features_ND.unsqueeze(0)))

    def _see(self, photo: ImageSource) -> _Seen:
        key, photo = _key(photo)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        pixel_values = self.image_processor([photo], return_tensors="pt")["pixel_values"].to(self.model.device)
        with torch.inference_mode():
            features_1ND = self.model.vision_tower(pixel_values)
            phrases_P = None if self.model.phrases is None else self.model.phrases(features_1ND)[0].float()
            seen = _Seen(self.model.connector(features_1ND), phrases_P)
        self._keep(key, seen)
        return seen

    def _keep(self, key: Hashable, seen: _Seen) -> None:
        self._kept[key] = seen
        if len(self._kept) > self.size:
            self._kept.popitem(last=False)


def _key(photo: ImageSource) -> tuple[Hashable, ImageSource]:
    """What the photo is known by, and the photo, opened where its pixels had to be read for that."""
    key = _file_key(photo)
    if key is None:
        photo = read_photo(photo)
        key = (photo.size, hashlib.blake2b(photo.tobytes()).digest())
    return key, photo


def _file_key(photo: ImageSource) -> Hashable | None:
    if not isinstance(photo, str | os.PathLike):
        return None
    try:
        status = os.stat(photo)
    except (OSError, ValueError):  # the reader says what is wrong with it
        return None
    return os.path.realpath(os.fsdecode(photo)), status.st_mtime_ns, status.st_size
