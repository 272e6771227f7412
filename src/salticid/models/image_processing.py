"""From photos to the tensor that a vision tower sees.

Resizing is done by Pillow on 8-bit pixels, then pixels are divided by 255 and normalised in float32: the rounding of the systems
whose published checkpoints are loaded here (CLIP's image processor, LLaVA's `expand2square`, BLIP-2's torchvision pipeline).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from salticid.errors import ConfigurationError, ImageError
from salticid.models.photos import MAX_PIXELS, ImageSource, read_photo

Mode = Literal["squash", "pad", "crop"]
Resample = Literal["bilinear", "bicubic"]
Triple = tuple[float, float, float]
Background = Literal["mean"] | tuple[int, int, int] | None

OPENAI_CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

RESAMPLE_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """How a vision tower wants its photos.

    size: side of the square it sees, in pixels.
    mode: "squash" ignores the aspect ratio; "pad" first pads to a square; "crop" scales the shorter side and keeps the centre.
    resample: filter of the resize; Pillow widens it when shrinking (antialiasing).
    mean, std: per channel, for pixels in 0..1.
    background: padding colour, 0..255 per channel, or "mean" for int(mean * 255); None exactly when the mode is not "pad".
    """

    size: int
    mode: Mode
    resample: Resample
    mean: Triple
    std: Triple
    background: Background = None

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise ConfigurationError(f"image size is {self.size!r}: give the side of the square in pixels, at least 1")
        for field, known in (("mode", RESIZE), ("resample", RESAMPLE_FILTERS)):
            if getattr(self, field) not in list(known):
                raise ConfigurationError(f"unknown image {field} {getattr(self, field)!r}: choose from {', '.join(known)}")
        for field in ("mean", "std"):
            object.__setattr__(self, field, _triple(field, getattr(self, field)))
        if min(self.std) <= 0:
            raise ConfigurationError(f"image std is {self.std}: every channel must be above 0")
        if (self.background is None) != (self.mode != "pad"):
            raise ConfigurationError(
                f"image mode {self.mode!r} with background {self.background!r}: a background belongs to mode 'pad', and to it alone"
            )
        if self.background not in (None, "mean"):
            colour = _triple("background", self.background)
            if not all(0 <= value <= 255 and value == int(value) for value in colour):
                raise ConfigurationError(f"image background is {self.background}: give 'mean' or three whole numbers in 0..255")
            object.__setattr__(self, "background", tuple(int(value) for value in colour))

    @property
    def background_colour(self) -> tuple[int, ...]:
        """Padding colour, 0..255 per channel."""
        if self.background == "mean":
            return tuple(int(value * 255) for value in self.mean)
        return tuple(self.background or ())


def _triple(field: str, values: Any) -> Triple:
    numbers = isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) and np.isfinite(v) for v in values)
    if not numbers:
        raise ConfigurationError(f"image {field} is {values!r}: give three numbers, one per channel")
    return (values[0], values[1], values[2])


# ---- resizing: RGB image of any size -> RGB image of size x size


def squash(image: Image.Image, transform: ImageTransform) -> Image.Image:
    """Scale both sides on their own (SigLIP; BLIP-2's `Resize((s, s), BICUBIC)`)."""
    return image.resize((transform.size, transform.size), RESAMPLE_FILTERS[transform.resample])


def crop(image: Image.Image, transform: ImageTransform) -> Image.Image:
    """Scale the shorter side to `size`, keep the middle of the longer one (CLIP's image processor)."""
    image = _middle_of_strip(image)
    size, (width, height) = transform.size, image.size
    long = int(size * max(width, height) / min(width, height))
    scaled = image.resize((size, long) if width <= height else (long, size), RESAMPLE_FILTERS[transform.resample])
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


def pad(image: Image.Image, transform: ImageTransform) -> Image.Image:
    """Centre on a square of the background colour (LLaVA's `expand2square`), then scale."""
    image = _bounded_side(image, transform)
    side = max(image.size)
    square = Image.new("RGB", (side, side), transform.background_colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return crop(square, transform)


RESIZE = {"squash": squash, "pad": pad, "crop": crop}

STRIP = 16


def _middle_of_strip(image: Image.Image) -> Image.Image:
    # A photo of 1 x 5000 would first be scaled to size x (5000 * size), gigabytes, to keep size x size of it.
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long <= STRIP * short:
        return image
    start = (long - 4 * short) // 2
    return image.crop((0, start, short, start + 4 * short) if width <= height else (start, 0, start + 4 * short, short))


def _bounded_side(image: Image.Image, transform: ImageTransform) -> Image.Image:
    # A strip of 1 x 1,000,000 is small, its square is not.
    if max(image.size) ** 2 <= MAX_PIXELS:
        return image
    shrink = 4 * transform.size / max(image.size)
    size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
    return image.resize(size, RESAMPLE_FILTERS[transform.resample])


def photo_to_tensor(image: Image.Image, transform: ImageTransform) -> torch.Tensor:
    """One RGB image to what the tower sees: float32 (3, size, size)."""
    pixels_HWC = np.array(RESIZE[transform.mode](image, transform))
    pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    mean_C11, std_C11 = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (transform.mean, transform.std))
    return pixels_CHW.sub_(mean_C11).div_(std_C11)


# ---- presets

IMAGE_TRANSFORMS: dict[str, ImageTransform] = {
    # TensorFlow's EfficientNet-Lite: (pixel - 127) / 128.
    "efficientnet_lite": ImageTransform(260, "squash", "bicubic", (127 / 255,) * 3, (128 / 255,) * 3),
    # openai/clip-vit-large-patch14-336.
    "clip": ImageTransform(336, "crop", "bicubic", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    # LLaVA and MoE-LLaVA with image_aspect_ratio = "pad".
    "llava_pad": ImageTransform(336, "pad", "bicubic", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, "mean"),
    # google/siglip-so400m-patch14-384.
    "siglip": ImageTransform(384, "squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # TinyGPT-V's blip2_image_train, which is blip2_image_eval: stages 1 to 3 at 224, stage 4 at 448.
    "blip2": ImageTransform(224, "squash", "bicubic", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
}


def image_transform(preset: str, **changes: Any) -> ImageTransform:
    """A preset by name, with fields changed, e.g. `image_transform("clip", size=224)`.

    Raises:
        ConfigurationError: unknown preset or field.
    """
    if preset not in IMAGE_TRANSFORMS:
        raise ConfigurationError(f"unknown image transform {preset!r}: choose from {', '.join(IMAGE_TRANSFORMS)}")
    _refuse_unknown(changes)
    return dataclasses.replace(IMAGE_TRANSFORMS[preset], **changes)


def _refuse_unknown(fields: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(ImageTransform)]
    if unknown := sorted(set(fields) - set(known)):
        raise ConfigurationError(f"unknown image option {', '.join(unknown)}: choose from {', '.join(known)}")


# ---- transformers' protocol


class SalticidImagesKwargs(ImagesKwargs, total=False):
    """Fields that `from_pretrained` may override."""

    mode: str
    mean: Sequence[float]
    std: Sequence[float]
    background: Any


# What transformers itself writes beside the fields.
BOOKKEEPING = ("image_processor_type", "processor_class", "auto_map")


class SalticidImageProcessor(BaseImageProcessor):
    """Photos of any source to `pixel_values`; saved as `preprocessor_config.json`. Fields are those of `ImageTransform`."""

    model_input_names = ["pixel_values"]  # noqa: RUF012
    valid_kwargs = SalticidImagesKwargs

    size: int
    mode: Mode
    resample: Resample
    mean: Triple
    std: Triple
    background: Background

    def __init__(
        self,
        size: int,
        mode: Mode,
        resample: Resample,
        mean: Triple,
        std: Triple,
        background: Background = None,
        **kwargs: Any,
    ) -> None:
        _refuse_unknown({key: value for key, value in kwargs.items() if key not in BOOKKEEPING})
        super().__init__()
        transform = ImageTransform(size, mode, resample, mean, std, background)
        for field in dataclasses.fields(transform):
            setattr(self, field.name, getattr(transform, field.name))

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:
        """The processor of a preset in `IMAGE_TRANSFORMS`, with fields changed."""
        return cls(**dataclasses.asdict(image_transform(preset, **changes)))

    @property
    def transform(self) -> ImageTransform:
        return ImageTransform(self.size, self.mode, self.resample, self.mean, self.std, self.background)

    def preprocess(self, images: ImageSource | Sequence[ImageSource], return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Read and transform photos.

        Args:
            images: one photo or several, each anything that `read_photo` reads; an array or tensor of four dimensions is a batch.
            return_tensors: "pt" or "np".

        Returns:
            `pixel_values`, float32 (B, 3, size, size).

        Raises:
            ImageError: a photo that cannot be read, or none at all.
            ConfigurationError: an unknown option.
        """
        if kwargs:
            raise ConfigurationError(f"unknown option {', '.join(sorted(kwargs))}: options are set when the image processor is built")
        photos = _flat(images)
        if not photos:
            raise ImageError("no photos given: pass at least one, or leave images out for text alone")
        transform = self.transform
        pixel_values_BCHW = torch.stack([photo_to_tensor(read_photo(photo), transform) for photo in photos])
        return BatchFeature(data={"pixel_values": pixel_values_BCHW}, tensor_type=return_tensors)


def _flat(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4):
        return [photo for item in images for photo in _flat(item)]
    return [cast("ImageSource", images)]
