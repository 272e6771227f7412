"""Image tokens of the photos that were seen last, so that further questions about a photo cost no second look."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from salticid.engine import patch_attention
from salticid.errors import InputError
from salticid.models import VisionLanguageModel
from salticid.models.photos import ImageSource, read_photo


class PhotoFeatures:
    """Projected image tokens by photo, the `size` latest kept. A file is known by path, time and size, other photos by their pixels."""

    def __init__(self, model: VisionLanguageModel, image_processor: Any, size: int = 8):
        self.model, self.image_processor, self.size = model, image_processor, size
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._phrases: dict[Hashable, Tensor] = {}
        patch_attention.use_for(model.vision_tower.model)

    def __call__(self, photos: Sequence[ImageSource]) -> Tensor:
        """At least one photo to (I, N, D).

        Raises:
            ImageError: a photo cannot be read.
        """
        return torch.cat([self._features(photo) for photo in photos])

    def phrase_scores(self, photo: ImageSource) -> Tensor | None:
        """(P,) of a photo that was looked at, from the model's phrase head; `None` without one, and where image tokens alone were kept."""
        return self._phrases.get(_key(photo)[0])

    def keep(self, photos: Sequence[ImageSource], image_features_IND: Tensor) -> None:
        """Photos whose image tokens are known already, as many as there may be.

        Raises:
            InputError: not as many photos as features. ImageError: a photo cannot be read.
        """
        if len(photos) != len(image_features_IND):
            raise InputError(f"{len(photos)} photos but image tokens of {len(image_features_IND)}; give one row of tokens for each photo")
        self.size = max(self.size, len(photos))
        for photo, features_ND in zip(photos, image_features_IND, strict=True):
            self._keep(_key(photo)[0], features_ND.unsqueeze(0))

    def _features(self, photo: ImageSource) -> Tensor:
        key, photo = _key(photo)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        pixel_values = self.image_processor([photo], return_tensors="pt")["pixel_values"].to(self.model.device)
        with torch.inference_mode():
            seen_1ND = self.model.vision_tower(pixel_values)
            features_1ND = self.model.connector(seen_1ND)
            if self.model.phrases is not None:
                self._phrases[key] = self.model.phrases(seen_1ND)[0].float()
        self._keep(key, features_1ND)
        return features_1ND

    def _keep(self, key: Hashable, features_1ND: Tensor) -> None:
        self._kept[key] = features_1ND
        if len(self._kept) > self.size:
            self._phrases.pop(self._kept.popitem(last=False)[0], None)


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
