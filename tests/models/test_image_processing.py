"""Photos become the tensors that each family of vision towers was trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from salticid.errors import ConfigurationError, ImageError
from salticid.models.image_processing import (
    IMAGE_TRANSFORMS,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ImageTransform,
    SalticidImageProcessor,
    image_transform,
    photo_to_tensor,
)

GOLDENS = Path(__file__).parents[1] / "goldens" / "image_processing.safetensors"


def plain(mode: Any, size: int = 8, background: Any = None) -> ImageTransform:
    """A transform whose values are pixels / 255."""
    return ImageTransform(size, mode, "bicubic", (0, 0, 0), (1, 1, 1), background)


def gradient(width: int, height: int) -> Image.Image:
    row, column = np.linspace(0, 255, width), np.linspace(255, 0, height)
    return Image.fromarray(np.stack(np.broadcast_arrays(row[None], column[:, None], 128.0), -1).astype(np.uint8))


# ---- against upstream's recorded outputs


@pytest.mark.parametrize("case", ["wide.blip2", "wide.llava_pad", "wide.clip", "small.llava_pad"])
def test_tensors_are_bit_equal_to_upstream(case: str) -> None:
    # Every second row of what TinyGPT-V's and MoE-LLaVA's own pipelines gave at 56 pixels.
    recorded = load_file(GOLDENS)
    name, preset = case.split(".")
    pixel_values = SalticidImageProcessor.from_preset(preset, size=56)(recorded[f"{name}.photo"].numpy())["pixel_values"]
    assert torch.equal(pixel_values[0, :, ::2], recorded[case])


RECORDINGS = {"tinygptv_prompts": {"train": "blip2"}, "moellava_prompts": {"pad": "llava_pad", "nopad": "clip"}}


@pytest.mark.parametrize("folder", RECORDINGS)
def test_all_recorded_photos(shared: Path, folder: str) -> None:
    recorded = load_file(shared / "fixtures" / folder / "images.safetensors")
    compared = 0
    for name, expected in recorded.items():
        photo, output = name.split(".")
        for prefix, preset in RECORDINGS[folder].items():
            if output.removeprefix(prefix).isdigit():
                processor = SalticidImageProcessor.from_preset(preset, size=int(output.removeprefix(prefix)))
                assert torch.equal(processor(recorded[f"{photo}.input"])["pixel_values"][0], expected), name
                compared += 1
    assert compared >= 5


def test_pad_at_336_sums_to_the_recorded_figure(shared: Path) -> None:
    recorded = load_file(shared / "fixtures" / "moellava_prompts" / "images.safetensors")
    pixel_values = SalticidImageProcessor.from_preset("llava_pad")(recorded["wide.input"])["pixel_values"]
    assert pixel_values.double().abs().sum().item() == pytest.approx(recorded["wide.pad336_stat"].item(), rel=1e-9)


@pytest.mark.parametrize("size", [(64, 40), (40, 64), (31, 31), (9, 70), (3, 2)])
@pytest.mark.parametrize("preset", ["clip", "siglip"])
def test_equal_to_transformers_processors(preset: str, size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    theirs = {
        "clip": lambda: CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
        "siglip": lambda: SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=Image.Resampling.BICUBIC),
    }[preset]()
    photo = gradient(*size)
    expected = theirs(photo, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(SalticidImageProcessor.from_preset(preset, size=24)(photo)["pixel_values"], expected, rtol=0, atol=1e-6)


# ---- the three modes


def test_squash_keeps_everything_crop_keeps_the_middle_pad_adds_the_background() -> None:
    # Three squares side by side: red, green, blue.
    photo = Image.fromarray(np.eye(3, dtype=np.uint8)[[0, 1, 2]].repeat(8, 0)[None].repeat(8, 0) * 255)
    squashed, cropped = photo_to_tensor(photo, plain("squash")), photo_to_tensor(photo, plain("crop"))
    assert squashed[:, 4, 0].tolist() == [1, 0, 0]
    assert squashed[:, 4, 7].tolist() == [0, 0, 1]
    assert torch.equal(cropped, torch.tensor([0.0, 1, 0])[:, None, None].expand(3, 8, 8))
    for image, strip in ((photo, (slice(8, 16), slice(None))), (photo.transpose(Image.Transpose.ROTATE_90), (slice(None), slice(8, 16)))):
        padded = photo_to_tensor(image, plain("pad", 24, (51, 102, 153)))
        outside = torch.ones(24, 24, dtype=torch.bool)
        outside[strip] = False
        assert torch.equal(padded[:, ~outside].sum(0), torch.ones(8 * 24))
        torch.testing.assert_close(padded[:, outside], torch.tensor([0.2, 0.4, 0.6])[:, None].expand(-1, 16 * 24))


def test_the_mean_colour_is_rounded_down_and_nearly_vanishes_after_normalisation() -> None:
    transform = image_transform("llava_pad", size=16)
    assert transform.background_colour == (122, 116, 104)
    corner = photo_to_tensor(gradient(16, 4), transform)[:, 0, 0]
    expected = (torch.tensor([122.0, 116, 104]) / 255 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    torch.testing.assert_close(corner, expected)
    assert corner.abs().max() < 0.02


def test_efficientnet_lite_normalises_as_tensorflow_does() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixel_values = SalticidImageProcessor.from_preset("efficientnet_lite", size=16)(grey)["pixel_values"]
    torch.testing.assert_close(pixel_values[0, 1], (torch.from_numpy(grey).float() - 127) / 128)


@given(
    width=st.integers(1, 64),
    height=st.integers(1, 64),
    size=st.integers(1, 40),
    mode=st.sampled_from(["squash", "pad", "crop"]),
    resample=st.sampled_from(["bilinear", "bicubic"]),
)
def test_any_photo_fits_any_transform(width: int, height: int, size: int, mode: Any, resample: Any) -> None:
    transform = ImageTransform(size, mode, resample, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, "mean" if mode == "pad" else None)
    tensor = photo_to_tensor(gradient(width, height), transform)
    assert tensor.shape == (3, size, size)
    assert tensor.dtype == torch.float32
    assert tensor.isfinite().all()


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1)])
def test_strips_cost_no_memory(mode: Any, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    real_resize, real_new = Image.Image.resize, Image.new

    def watch(size: tuple[int, int]) -> None:
        assert size[0] * size[1] <= 1_000_000

    def resize(image: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        watch(size)
        return real_resize(image, size, *args, **kwargs)

    def new(kind: str, size: tuple[int, int], *args: Any) -> Image.Image:
        watch(size)
        return real_new(kind, size, *args)

    monkeypatch.setattr(Image.Image, "resize", resize)
    monkeypatch.setattr(Image, "new", new)
    photo = Image.fromarray(np.full((*shape, 3), 255, np.uint8))
    tensor = photo_to_tensor(photo, plain(mode, 32, (0, 0, 0) if mode == "pad" else None))
    assert tensor.shape == (3, 32, 32)
    middle = tensor[:, 15:17] if shape[0] == 1 else tensor[:, :, 15:17]
    assert middle.sum() > 0
    assert mode == "pad" or bool((tensor == 1).all())


def test_a_strip_is_cropped_about_as_the_long_way_would() -> None:
    photo = gradient(170, 10)
    tensor = photo_to_tensor(photo, plain("crop", 20))
    long_way = np.asarray(photo.resize((340, 20), Image.Resampling.BICUBIC).crop((160, 0, 180, 20))) / 255
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), long_way, atol=1.01 / 255)


# ---- transformers' protocol


def test_one_photo_several_photos_and_batches() -> None:
    processor = SalticidImageProcessor.from_preset("siglip", size=12)
    photos = [gradient(20, 10), np.asarray(gradient(5, 9)), torch.zeros(3, 4, 4)]
    batch = processor(photos)["pixel_values"]
    assert batch.shape == (3, 3, 12, 12)
    assert batch.dtype == torch.float32
    for row, photo in zip(batch, photos, strict=True):
        assert torch.equal(processor.preprocess(photo)["pixel_values"], row[None])
    assert torch.equal(processor([photos[:1], photos[1:]])["pixel_values"], batch)
    assert processor(torch.zeros(5, 3, 4, 4))["pixel_values"].shape == (5, 3, 12, 12)
    np.testing.assert_array_equal(processor(photos, return_tensors="np")["pixel_values"], batch.numpy())


@pytest.mark.parametrize("preset", IMAGE_TRANSFORMS)
def test_saved_and_loaded(tmp_path: Path, preset: str) -> None:
    processor = SalticidImageProcessor.from_preset(preset, size=20)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "SalticidImageProcessor"
    assert saved["size"] == 20
    loaded = SalticidImageProcessor.from_pretrained(tmp_path)
    assert loaded.transform == processor.transform == dataclasses.replace(IMAGE_TRANSFORMS[preset], size=20)
    assert torch.equal(loaded(gradient(9, 7))["pixel_values"], processor(gradient(9, 7))["pixel_values"])
    assert SalticidImageProcessor.from_pretrained(tmp_path, size=28).transform.size == 28


def test_a_saved_folder_with_an_unknown_option_is_refused(tmp_path: Path) -> None:
    SalticidImageProcessor.from_preset("clip").save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    saved = json.loads(path.read_text())
    for change, message in (({"mode": "stretch"}, "squash, pad, crop"), ({"do_resize": False}, "do_resize")):
        path.write_text(json.dumps(saved | change))
        with pytest.raises(ConfigurationError, match=message):
            SalticidImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "stretch"}, "squash, pad, crop"),
        ({"mode": ["pad"]}, "squash, pad, crop"),
        ({"resample": "nearest"}, "bilinear, bicubic"),
        ({"size": 0}, "at least 1"),
        ({"size": 33.6}, "33.6"),
        ({"size": (336, 336)}, "side of the square"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "three numbers"),
        ({"background": (0, 0, 0)}, "mode 'pad'"),
        ({"mode": "pad"}, "background"),
        ({"mode": "pad", "background": (0, 0, 256)}, "0..255"),
        ({"mode": "pad", "background": "white"}, "three numbers"),
        ({"do_rescale": True}, "do_rescale"),
    ],
)
def test_unusable_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        image_transform("clip", **changes)
    with pytest.raises(ConfigurationError, match=message):
        SalticidImageProcessor.from_preset("clip", **changes)


def test_unknown_presets_options_and_no_photos() -> None:
    with pytest.raises(ConfigurationError, match="efficientnet_lite, clip, llava_pad, siglip, blip2"):
        image_transform("vgg")
    processor = SalticidImageProcessor.from_preset("clip", size=8)
    with pytest.raises(ConfigurationError, match="do_pad"):
        processor(gradient(2, 2), do_pad=True)
    with pytest.raises(ImageError, match="at least one"):
        processor([])
