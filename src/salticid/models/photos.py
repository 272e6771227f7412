"""Reading photos as people have them: every kind of source becomes one upright RGB image of 8 bits per channel.

Nothing here touches Pillow's global switches: the size is checked against the header before any pixel is decoded, and a file
that ends too early is refused whatever `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` says.
"""

from __future__ import annotations

import codecs
import io
import math
import os
from collections.abc import Callable
from typing import BinaryIO, cast

import numpy as np
import torch
from PIL import Image, ImageFile

from salticid.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor

MAX_PIXELS = 100_000_000

# Formats with a signature and a header that names the size. Others stay out on purpose: EPS would run a program, TGA has no
# signature and claims text files, a JPEG 2000 file cut short cannot be told from a whole one.
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")

# EXIF tag 0x0112: what to do to a stored picture to set it upright.
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

CHANNELS = (1, 3, 4)

# Half a step of 8 bits: what interpolation and rounding may add to floats that are meant to lie in 0..1.
FLOAT_SLACK = 0.5 / 255

URL_SCHEMES = ("http:/", "https:/", "ftp:/", "file:/", "s3:/", "gs:/", "data:")


def read_photo(source: ImageSource, *, long_side_hint: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one photo as an upright RGB image of at least 1 x 1 pixels.

    Args:
        source: a path, the bytes of an image file, an open binary file (rewound first), a Pillow image, a NumPy array (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor of these shapes or (C, H, W), which wins where both readings are
            possible. Pixels are uint8, uint16, bool, or floats in 0..1. Never a URL.
        long_side_hint: the caller needs no more than this many pixels along the longer side; a JPEG may then be decoded at
            1/2, 1/4 or 1/8 of its size, never below the hint. Slightly different pixels, several times faster.
        max_pixels: refuse larger photos before decoding them.

    Transparency is laid on white, the first frame of an animation is taken, 16-bit grey is scaled by 1/257.

    Raises:
        ImageError: the source is missing, unreadable, truncated, too large, of an unknown format, or no photo at all.
    """
    if isinstance(source, torch.Tensor):
        return _from_array(_tensor_to_array(source), max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _from_pillow(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), "the photo given as bytes", long_side_hint, max_pixels)
    if isinstance(source, str | os.PathLike):
        return _from_path(source, long_side_hint, max_pixels)
    if hasattr(source, "read"):
        return _from_stream(source, long_side_hint, max_pixels)
    raise ImageError(
        f"cannot read a photo from {type(source).__name__}: give a path, bytes, a binary file, a Pillow image, an array or a tensor"
    )


# ---- files


class _WatchedFile:
    """A binary file that remembers whether a decoder asked for bytes beyond its end.

    It hides `fileno` and `getvalue`, so that Pillow's decoders read through it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.starved = False

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.starved = self.starved or (size > 0 and not data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _from_path(source: str | os.PathLike[str], long_side_hint: int | None, max_pixels: int) -> Image.Image:
    path = os.fsdecode(source)
    name = _shown(path)
    if path.lower().startswith(URL_SCHEMES):
        raise ImageError(f"{name} is a URL: download the photo first and give its path")
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise ImageError(f"no such photo: {name}; check the path, relative ones start at {os.getcwd()!r}") from None
    except (IsADirectoryError, PermissionError):
        # Windows reports a folder as a lack of permission.
        remedy = "is a folder: give the path of one photo in it" if os.path.isdir(path) else "may not be read: check its permissions"
        raise ImageError(f"{name} {remedy}") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot open {name}: {_one_line(error)}; check the path") from None
    with file:
        return _from_file(file, name, long_side_hint, max_pixels)


def _from_stream(source: BinaryIO, long_side_hint: int | None, max_pixels: int) -> Image.Image:
    stream_name = getattr(source, "name", None)
    name = _shown(stream_name) if isinstance(stream_name, str) else "the photo given as a file"
    try:
        if source.seekable():
            source.seek(0)
        data = source.read()
    except (OSError, ValueError, AttributeError) as error:
        raise ImageError(f"cannot read {name}: {_one_line(error)}; give a file that is open for reading in binary mode") from None
    if not isinstance(data, bytes):
        raise ImageError(f"{name} is open in text mode: open it in binary mode, open(path, 'rb')")
    return _from_file(io.BytesIO(data), name, long_side_hint, max_pixels)


def _from_file(file: BinaryIO, name: str, long_side_hint: int | None, max_pixels: int) -> Image.Image:
    watched = _WatchedFile(file)
    try:
        image = _open_header(watched, name)
        _check_size(image.width, image.height, name, max_pixels)
        if long_side_hint is not None and long_side_hint > 0:
            shrink = max(1.0, max(image.size) / long_side_hint)
            image.draft(None, (math.ceil(image.width / shrink), math.ceil(image.height / shrink)))
    except OSError as error:
        raise ImageError(f"cannot read {name}: {_one_line(error)}; copy it to another disk") from None
    watched.starved = False
    truncated = ImageError(f"{name} is truncated, the file ends before the picture does: copy or download it again")
    try:
        rgb = _upright_rgb(image, name)
    except ImageError as error:
        raise (truncated if watched.starved else error) from None
    if watched.starved:
        raise truncated
    return rgb


def _open_header(file: _WatchedFile, name: str) -> ImageFile.ImageFile:
    """Read the header alone, by Pillow's own format classes.

    `PIL.Image.open` would do the same, but warns or raises by a process-wide limit on the size.
    """
    head = file.read(512)
    if not head:
        raise ImageError(f"{name} is empty: copy or download the photo again")
    kind, factory = _format_of(head)
    if factory is None:
        raise ImageError(f"{name} {_what_it_is(head)}")
    file.seek(0)
    try:
        return factory(cast("BinaryIO", file), "")
    except Image.DecompressionBombError:
        raise ImageError(f"{name} claims more pixels than are safe to decode: resize it first") from None
    except Exception as error:  # a broken header fails in many ways: struct, zlib, index and value errors
        detail = f"its header is damaged, of an unknown kind, or says 0 pixels ({_one_line(error)})"
        raise ImageError(f"{name} is no readable {kind}: {detail}; copy, download or export it again") from None


def _format_of(head: bytes) -> tuple[str, Callable[[BinaryIO, str], ImageFile.ImageFile] | None]:
    """The photo format whose signature fits the first bytes of a file: its name and Pillow's reader."""
    if not _is_heic(head):
        for load_plugins in (Image.preinit, Image.init):  # the common formats first: the others take longer to import
            load_plugins()
            for kind in PHOTO_FORMATS:
                factory, accept = Image.OPEN.get(kind, (None, None))
                accepted = accept(head[:16]) if accept else False
                if accepted and not isinstance(accepted, str):  # a string says that this Pillow was built without it
                    return kind, factory
    return "", None


def _is_heic(head: bytes) -> bool:
    # HEIC and AVIF share containers, and some files of both kinds put the container's brand first.
    return head[4:8] == b"ftyp" and b"avi" not in head[8:64] and any(brand in head[8:64] for brand in (b"hei", b"hev", b"mif1", b"msf1"))


def _what_it_is(head: bytes) -> str:
    """Why a file is no photo, and the remedy, from its first bytes."""
    if _is_heic(head):
        return "is an HEIC photo, which cannot be read here: convert it to JPEG or PNG"
    if head[4:8] == b"ftyp" or head.startswith(b"\x1aE\xdf\xa3"):
        return "is a video: save one frame as JPEG or PNG"
    if head.startswith(b"%PDF"):
        return "is a PDF document: export the page as JPEG or PNG"
    if b"<svg" in head.lower():
        return "is an SVG drawing: convert it to JPEG or PNG"
    if _is_text(head):
        return "holds text, not a photo: check the path"
    return f"is no photo of a known format ({', '.join(PHOTO_FORMATS)}): convert it to JPEG or PNG"


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # incremental: the last character may be cut
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


# ---- Pillow images


def _from_pillow(image: Image.Image, max_pixels: int) -> Image.Image:
    filename = getattr(image, "filename", "")
    name = _shown(filename) if isinstance(filename, str) and filename else "the Pillow image"
    _check_size(image.width, image.height, name, max_pixels)
    return _upright_rgb(image, name)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        rgb = _to_rgb(image, name)
    except ImageError:
        raise
    except Exception as error:  # decoders of damaged files fail in many ways
        raise ImageError(
            f"{name} is truncated, damaged or of a rare kind ({_one_line(error)}); copy it or export it as PNG again"
        ) from None
    turn = UPRIGHT.get(_orientation(image))
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info = {}  # the orientation is applied: whoever reads the result again must not find it
    return upright


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF data is no reason to refuse a photo whose pixels are fine
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image, not yet turned."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray(_to_uint8(_to_uint16(np.asarray(image), name), name)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_to_uint8(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


# ---- arrays


def _tensor_to_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as an array, channels last if it has channels first."""
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in CHANNELS else array


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    name = f"the array of shape {array.shape}"
    pixels = _channels_last(array, name)
    _check_size(pixels.shape[1], pixels.shape[0], name, max_pixels)
    pixels = np.ascontiguousarray(_to_uint8(pixels, name))
    if pixels.shape[2] == 1:
        return Image.fromarray(pixels[:, :, 0]).convert("RGB")
    image = Image.fromarray(pixels)
    return _on_white(image) if image.mode == "RGBA" else image


def _channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """Check the shape and return the pixels as (H, W, C) with C in 1, 3, 4."""
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise ImageError(f"{name} is no single photo: give (height, width) or (height, width, channels), and several photos as a list")
    if array.shape[2] not in CHANNELS:
        raise ImageError(f"{name} has {array.shape[2]} channels: give 1, 3 or 4, last: (height, width, channels)")
    return array


def _to_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ImageError(f"{name} holds {pixels.dtype} pixels: convert them to uint8 (0..255), uint16 (0..65535) or floats (0..1)")
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name} holds NaN or infinite pixels: replace them before you pass it")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -FLOAT_SLACK or high > 1 + FLOAT_SLACK:
        raise ImageError(f"{name} holds floats in {low:.4g}..{high:.4g}, not 0..1: divide by 255, or undo the normalisation")
    return np.rint(np.clip(pixels, 0, 1).astype(np.float32) * 255).astype(np.uint8)


def _to_uint16(pixels: np.ndarray, name: str) -> np.ndarray:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name} holds 32-bit greys in {low}..{high}: save it with 8 or 16 bits per pixel")
    return pixels.astype(np.uint16)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width}x{height}): give a photo of at least 1x1")
    if width * height > max_pixels:
        raise ImageError(f"{name} has {width}x{height} pixels, more than {max_pixels / 1e6:g} megapixels: resize it first")


def _shown(path: str) -> str:
    """A path in quotes on one line, and short: it may be something else, passed by mistake."""
    return repr(path if len(path) <= 200 else f"{path[:100]}...")


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
