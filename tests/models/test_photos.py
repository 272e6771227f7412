"""Photos as people have them are read upright, in RGB; bad ones end in one clear line."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from salticid.errors import ImageError
from salticid.models.photos import MAX_PIXELS, read_photo

# A 3 x 2 picture whose six colours all differ, so that every turn and flip shows.
CORNERS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [40, 40, 40]]],
    dtype=np.uint8,
)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(scale: int = 1) -> Image.Image:
    return Image.fromarray(CORNERS.repeat(scale, 0).repeat(scale, 1))


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(source: Any) -> np.ndarray:
    photo = read_photo(source)
    assert type(photo) is Image.Image
    assert photo.mode == "RGB"
    return np.asarray(photo)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


# ---- sources


@pytest.mark.parametrize("as_source", [str, Path, lambda p: p.read_bytes(), lambda p: io.BytesIO(p.read_bytes()), lambda p: Image.open(p)])
def test_every_kind_of_source_gives_the_same_photo(tmp_path: Path, as_source: Any) -> None:
    path = tmp_path / "photo.png"
    corners().save(path)
    source = as_source(path)
    np.testing.assert_array_equal(pixels(source), CORNERS)
    if isinstance(source, Image.Image):
        source.close()


def test_an_open_file_is_rewound_and_a_pipe_is_read_to_its_end() -> None:
    written = io.BytesIO()
    corners().save(written, "PNG")
    np.testing.assert_array_equal(pixels(written), CORNERS)
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        with open(writer, "wb") as end:
            end.write(encoded(corners(), "PNG"))
        np.testing.assert_array_equal(pixels(pipe), CORNERS)


def test_the_photo_is_a_copy() -> None:
    image = corners()
    read_photo(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (255, 0, 0)


ARRAYS = {
    "uint8": CORNERS,
    "uint16": CORNERS.astype(np.uint16) * 257,
    "big-endian uint16": (CORNERS.astype(np.uint16) * 257).astype(">u2"),
    "float32": CORNERS.astype(np.float32) / 255,
    "float64": CORNERS / 255.0,
    "rgba": np.dstack([CORNERS, np.full((2, 3), 255, np.uint8)]),
    "upside down view": CORNERS[::-1].copy()[::-1],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_and_tensors_of_every_type(kind: str) -> None:
    array = ARRAYS[kind]
    np.testing.assert_array_equal(pixels(array), CORNERS)
    if array.dtype.byteorder != ">":
        last = torch.from_numpy(array.copy())
        np.testing.assert_array_equal(pixels(last), CORNERS)
        np.testing.assert_array_equal(pixels(last.permute(2, 0, 1)), CORNERS)


def test_grey_bool_and_half_precision() -> None:
    grey = np.array([[0, 51, 255]], dtype=np.uint8)
    expected = grey[:, :, None].repeat(3, 2)
    for source in (
        grey,
        grey[:, :, None],
        grey / 255,
        torch.from_numpy(grey),
        torch.from_numpy(grey)[None],
        torch.from_numpy(grey / 255).half(),
    ):
        np.testing.assert_array_equal(pixels(source), expected)
    np.testing.assert_array_equal(pixels(torch.tensor([[True, False]])), pixels(np.array([[255, 0]], np.uint8)))
    np.testing.assert_array_equal(pixels(torch.ones(3, 2, 2, dtype=torch.bfloat16, requires_grad=True)), 255)


def test_a_tensor_that_could_be_read_both_ways_is_channels_first() -> None:
    tensor = torch.arange(18, dtype=torch.uint8).reshape(3, 2, 3)
    np.testing.assert_array_equal(pixels(tensor), tensor.permute(1, 2, 0).numpy())


def test_floats_round_to_the_nearest_step_and_forgive_rounding_errors() -> None:
    np.testing.assert_array_equal(pixels(np.array([[-1e-4, 0.5, 1 + 1e-4]]))[0, :, 0], [0, 128, 255])


# ---- colours


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int) -> None:
    # What a camera stores, by the EXIF 2.32 table: which corner of the scene the first stored pixel shows.
    stored = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.transpose(1, 0, 2),
        6: CORNERS.transpose(1, 0, 2)[::-1],
        7: CORNERS.transpose(1, 0, 2)[::-1, ::-1],
        8: CORNERS.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        photo = read_photo(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
        np.testing.assert_array_equal(np.asarray(photo), CORNERS)
        np.testing.assert_array_equal(pixels(photo), CORNERS)


def test_broken_exif_does_not_refuse_a_photo() -> None:
    data = encoded(corners(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(data), CORNERS)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (0, 51, 255)
    expected = [[255, 255, 255], [244, 204, 204], [200, 0, 0]]
    for source in (rgba, Image.fromarray(rgba), encoded(Image.fromarray(rgba), "PNG"), torch.from_numpy(rgba).permute(2, 0, 1)):
        np.testing.assert_array_equal(pixels(source)[0], expected)
    assert read_photo(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert read_photo(Image.new("La", (1, 1), (0, 255))).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encoded(palette, "PNG", transparency=transparency))[0], [[255] * 3, [10, 20, 30]])
    np.testing.assert_array_equal(pixels(encoded(palette, "PNG"))[0], [[9] * 3, [10, 20, 30]])


def test_a_transparent_colour_of_rgb_and_grey() -> None:
    assert read_photo(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)
    assert read_photo(encoded(Image.new("L", (1, 1), 7), "PNG", transparency=7)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_keeps_its_colours(kind: str) -> None:
    image = corners(8)
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    difference = pixels(encoded(image.convert("CMYK"), kind, **options)).astype(int) - np.asarray(image)
    assert np.abs(difference).max() <= 6


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    expected = [0, 0, 1, 1, 128, 255]
    little, big = Image.fromarray(deep), Image.frombytes("I;16B", (6, 1), deep.astype(">u2").tobytes())
    for source in (
        little,
        big,
        Image.fromarray(deep.astype(np.int32)),
        encoded(little, "PNG"),
        encoded(big, "TIFF"),
        encoded(little, "TIFF"),
    ):
        np.testing.assert_array_equal(pixels(source)[0], np.array(expected)[:, None].repeat(3, 1))


def test_bilevel_and_float_images() -> None:
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encoded(bits, "PNG"))[0, :, 0], [0, 255])
    np.testing.assert_array_equal(pixels(Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32)))[0, :, 0], [0, 51, 255])


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {}), ("MPO", {"quality": 100})]
)
def test_the_first_frame_of_an_animation(kind: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((0, 0, 255), (255, 0, 0))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as check:
        assert check.n_frames == 2
    np.testing.assert_allclose(pixels(data)[0, 0], [0, 0, 255], atol=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_tiny_and_very_long_photos(size: tuple[int, int]) -> None:
    assert read_photo(encoded(Image.new("RGB", size), "PNG")).size == size


@pytest.mark.parametrize(
    ("hint", "size"), [(None, (640, 320)), (400, (640, 320)), (320, (320, 160)), (81, (160, 80)), (1, (80, 40)), (9000, (640, 320))]
)
def test_the_hint_shrinks_a_jpeg_but_never_below_it(hint: int | None, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", (640, 320), (250, 10, 10)), "JPEG")
    photo = read_photo(data, long_side_hint=hint)
    assert photo.size == size
    np.testing.assert_allclose(photo.getpixel((40, 20)), (250, 10, 10), atol=4)


# ---- bad input


def fails(source: Any, *words: str, **options: Any) -> str:
    """Reading fails with one line that holds all words."""
    with pytest.raises(ImageError) as caught:
        read_photo(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("empty.jpg", b"", "empty"),
        ("notes.jpg", b"Dear diary,\nit was a good day.\n", "text"),
        ("umlauts.jpg", ("x" * 511 + "ü").encode(), "text"),
        ("drawing.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "convert it to JPEG or PNG"),
        ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        ("phone.heif", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        ("clip.mp4", b"\0\0\0\x18ftypisom\0\0\0\0" + bytes(40), "video"),
        ("page.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        ("weights.bin", bytes(range(256)), "no photo of a known format"),
        ("nothing.png", png_header(0, 0), "0 pixels"),
        ("stub.jpg", b"\xff\xd8\xff\xe0", "JPEG"),
    ],
)
def test_files_that_are_no_photos(tmp_path: Path, name: str, content: bytes, remedy: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    fails(path, name, remedy)


def test_paths_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(tmp_path / "gone.jpg", "no such photo", "gone.jpg")
    fails(tmp_path, "folder", tmp_path.name)
    fails("two\nlines.jpg", "no such photo")
    fails("nul\0.jpg", "nul")
    assert len(fails("x" * 100_000)) < 400

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    fails("secret.jpg", "secret.jpg", "permissions")


@pytest.mark.parametrize("url", ["http://example.org/cat.jpg", "HTTPS://example.org/cat.jpg", Path("https://example.org/cat.jpg")])
def test_a_url_is_never_fetched(url: Any) -> None:
    fails(url, "URL", "download")


def test_files_that_are_not_open_for_bytes(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    corners().save(path)
    with open(path, encoding="latin-1") as text:
        fails(text, "photo.png", "'rb'")
    with open(tmp_path / "out.png", "wb") as write_only:
        fails(write_only, "out.png", "binary mode")
    closed = open(path, "rb")  # noqa: SIM115
    closed.close()
    fails(closed, "photo.png", "open")
    fails(3, "int")


WHOLE = {
    "JPEG": encoded(noise(), "JPEG"),
    "progressive JPEG": encoded(noise(), "JPEG", progressive=True),
    "PNG": encoded(noise(), "PNG"),
    "interlaced PNG": encoded(noise().convert("RGBA"), "PNG", interlace=1),
    "GIF": encoded(noise().convert("P"), "GIF"),
    "WEBP": encoded(noise(), "WEBP"),
    "BMP": encoded(noise(), "BMP"),
    "TIFF": encoded(noise(), "TIFF", compression="tiff_deflate"),
    "PPM": encoded(noise(), "PPM"),
}


@pytest.mark.parametrize("forgiving", [False, True])
@pytest.mark.parametrize("kind", WHOLE)
def test_a_truncated_file_is_never_taken_for_a_whole_one(kind: str, forgiving: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", forgiving)
    data = WHOLE[kind]
    whole = pixels(data)
    for share in (0.02, 0.2, 0.5, 0.9, 0.98):
        fails(data[: int(len(data) * share)], "the photo given as bytes")
    for missing in range(1, 13):
        try:
            photo = read_photo(data[:-missing])
        except ImageError:
            continue
        np.testing.assert_array_equal(np.asarray(photo), whole)  # padding or an end marker is missing, no pixel


def test_a_truncated_photo_says_so(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(WHOLE["JPEG"][: len(WHOLE["JPEG"]) // 2 + 300])
    fails(path, "half.jpg", "truncated", "again")
    with Image.open(path) as lazy:
        fails(lazy, "half.jpg", "truncated")


def test_a_damaged_photo_is_refused() -> None:
    data = bytearray(WHOLE["PNG"])
    data[200:260] = bytes(60)
    fails(bytes(data), "damaged")


@given(data=st.binary(max_size=80), start=st.sampled_from([b"", *(whole[:60] for whole in WHOLE.values())]))
@settings(max_examples=60, deadline=None)
def test_arbitrary_bytes_end_in_a_photo_or_in_one_line(data: bytes, start: bytes) -> None:
    try:
        photo = read_photo(start + data, max_pixels=10_000)
    except ImageError as error:
        message = str(error)
    else:
        message = ""
        assert min(photo.size) >= 1
    assert "\n" not in message


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_001, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_huge_photos_are_refused_by_their_header(tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(_: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    fails(path, "bomb.png", f"{size[0]}x{size[1]}", "100 megapixels", "resize")


def test_the_limit_is_ours_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(corners(), "PNG")
    for limit in (5, 1):  # Pillow alone would warn, and raise
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        np.testing.assert_array_equal(pixels(data), CORNERS)
    fails(data, "3x2", max_pixels=5)
    fails(corners(), "3x2", max_pixels=5)
    fails(CORNERS, "3x2", max_pixels=5)
    assert read_photo(data, max_pixels=6).size == (3, 2)
    assert MAX_PIXELS == 100_000_000


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 3, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 2), np.uint8), "2 channels"),
        (np.zeros((3, 40, 50), np.uint8), "50 channels"),
        (torch.zeros(2, 40, 50), "50 channels"),
        (np.zeros((2, 3, 4, 4), np.uint8), "list"),
        (np.zeros(4, np.uint8), "(height, width)"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), complex), "complex"),
        (np.full((4, 4), np.nan), "NaN"),
        (torch.full((3, 4, 4), float("inf")), "infinite"),
        (np.full((4, 4), 255.0), "divide by 255"),
        (np.full((4, 4), 1e300), "divide by 255"),
        (torch.full((3, 4, 4), -1.8), "normalisation"),
        (Image.fromarray(np.full((2, 2), 70_000, np.int32)), "70000"),
        (Image.fromarray(np.full((2, 2), -1, np.int32)), "-1"),
        (Image.new("RGB", (0, 5)), "0x5"),
    ],
)
def test_arrays_and_images_that_hold_no_photo(array: Any, words: str) -> None:
    message = fails(array, words)
    assert re.search(r": \w", message), "no remedy"
