"""Photos and text to model inputs: a tokenizer, an image processor, and the number of placeholders that a photo takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from salticid.errors import ConfigurationError, InputError

IMAGE_MARK = "<image>"


class VisionLanguageProcessor(ProcessorMixin):
    """Processor of `VisionLanguageModel`.

    Args:
        image_processor: a `SalticidImageProcessor`.
        tokenizer: a tokenizer that knows `<image>` as one special token.
        image_tokens: placeholders that each photo takes, `VisionLanguageConfig.image_tokens`.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, image_tokens: int = 1, chat_template: str | None = None, **kwargs: Any
    ):
        self.image_tokens = image_tokens
        self.image_token = IMAGE_MARK
        self.image_token_id = None if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE_MARK)
        if tokenizer is not None and self.image_token_id in (None, tokenizer.unk_token_id):
            raise ConfigurationError(f"the tokenizer has no token {IMAGE_MARK}; add it as a special token first")
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Texts and the photos that they mark to what the model's `forward` and `generate` take.

        Args:
            images: photos of the whole batch, in reading order; any `ImageSource`, a list of them, or one list for each text.
            text: one or more texts in which `<image>` stands for each photo.
            **kwargs: as the tokenizer takes them.

        Returns:
            `input_ids`, `attention_mask` (B, T), padded on the left for generation, and `pixel_values` (I, 3, H, W).

        Raises:
            InputError: no text, or the marks in it are not as many as the photos.
            ImageError: a photo cannot be read.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            raise InputError("there is no text; give a question, or a prompt with <image> where the photo stands")
        photos = _check_marks(texts, images)
        options = {"padding": True, "padding_side": "left", "add_special_tokens": False, **kwargs}
        wide = [piece.replace(IMAGE_MARK, IMAGE_MARK * self.image_tokens) for piece in texts]
        features = dict(self.tokenizer(wide, return_tensors=return_tensors, **options))
        features.pop("token_type_ids", None)
        if photos:
            features["pixel_values"] = self.image_processor(photos, return_tensors=return_tensors)["pixel_values"]
        return BatchFeature(features)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def _check_marks(texts: Sequence[str], images: Any) -> list[Any]:
    """The photos in one list, once they are known to be as many as the marks: in each text, where photos are given by text."""
    by_text = isinstance(images, list | tuple) and bool(images) and all(isinstance(photos, list | tuple) for photos in images)
    found, given = [text.count(IMAGE_MARK) for text in texts], [len(_flat(photos)) for photos in images] if by_text else []
    photos = _flat(images)
    if sum(found) != len(photos) or (by_text and found != given):
        marked, have = (found, given) if by_text else (sum(found), len(photos))
        raise InputError(f"the text marks {marked} photos with {IMAGE_MARK} but {have} photos are given; write one {IMAGE_MARK} for each")
    return photos


def _flat(images: Any) -> list[Any]:
    """Photos one by one; an array of four dimensions holds several."""
    if images is None:
        return []
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        return [photo for item in images for photo in _flat(item)]
    return [images]
