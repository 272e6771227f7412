"""Photos and text to model inputs, and back from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from salticid.errors import ConfigurationError, InputError
from salticid.models import SalticidImageProcessor, VisionLanguageProcessor

TOKENS = 4


@pytest.fixture
def processor(tokenizer: Any) -> VisionLanguageProcessor:
    return VisionLanguageProcessor(SalticidImageProcessor.from_preset("clip", size=16), tokenizer, image_tokens=TOKENS)


def photo(shade: int = 100) -> Image.Image:
    return Image.new("RGB", (20, 30), (shade, 40, 200))


def test_each_mark_becomes_as_many_placeholders_as_a_photo_takes(processor: Any, tokenizer: Any) -> None:
    inputs = processor([photo(0), photo(255)], "<image>What is<image> on the table?")
    image = tokenizer.convert_tokens_to_ids("<image>")
    words = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("What is", " on the table?")]
    assert inputs["input_ids"].tolist() == [[image] * TOKENS + words[0] + [image] * TOKENS + words[1]]
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)
    assert inputs["pixel_values"][0, 0].max() < inputs["pixel_values"][1, 0].min()
    assert processor.image_token_id == image


def test_batches_are_padded_on_the_left(processor: Any, tokenizer: Any) -> None:
    inputs = processor([photo()], ["What is on the table?<image>", "a dog"])
    length = inputs["input_ids"].shape[1]
    words = tokenizer("a dog", add_special_tokens=False)["input_ids"]
    assert inputs["input_ids"][1].tolist() == [tokenizer.pad_token_id] * (length - len(words)) + words
    assert inputs["attention_mask"][1].tolist() == [0] * (length - len(words)) + [1] * len(words)
    assert set(inputs) == set(processor.model_input_names) == {"input_ids", "attention_mask", "pixel_values"}


def test_text_alone(processor: Any) -> None:
    assert set(processor(text="a dog")) == {"input_ids", "attention_mask"}
    assert processor(text=["a dog"], images=[])["input_ids"].shape[0] == 1


@pytest.mark.parametrize("kind", ["pillow", "list", "path", "bytes", "array", "tensor", "batch", "nested"])
def test_photos_in_every_form(processor: Any, kind: str, tmp_path: Path) -> None:
    picture = photo()
    picture.save(tmp_path / "photo.png")
    array = np.array(picture)
    form = {
        "pillow": picture,
        "list": [picture],
        "path": tmp_path / "photo.png",
        "bytes": (tmp_path / "photo.png").read_bytes(),
        "array": array,
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
        "batch": array[None],
        "nested": [[picture]],
    }[kind]
    assert torch.equal(processor(form, "<image>a dog")["pixel_values"], processor([picture], "<image>a dog")["pixel_values"])


def test_marks_are_counted(processor: Any) -> None:
    with pytest.raises(InputError, match="marks 1 photos with <image> but 2 photos are given"):
        processor([photo(), photo()], "<image>a dog")
    with pytest.raises(InputError, match="marks 1 photos with <image> but 0 photos are given"):
        processor(text="<image>a dog")
    with pytest.raises(InputError, match=r"marks \[2, 0\] photos with <image> but \[1, 1\] photos are given"):
        processor([[photo()], [photo()]], ["<image><image>a dog", "a dog"])
    with pytest.raises(InputError, match="there is no text"):
        processor(photo())
    with pytest.raises(InputError, match="there is no text"):
        processor(photo(), [])


def test_a_tokenizer_without_the_mark_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    with pytest.raises(ConfigurationError, match="no token <image>"):
        VisionLanguageProcessor(SalticidImageProcessor.from_preset("clip"), plain)


def test_round_trip(processor: Any, tiny: Any, tmp_path: Path, transformers_log: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    tiny.model("clip", "pool").save_pretrained(tmp_path)  # loaders look at config.json too
    processor.save_pretrained(tmp_path)
    capfd.readouterr()
    expected = processor([photo()], "<image>What is on the table?")
    for loader in (AutoProcessor, VisionLanguageProcessor):
        again = loader.from_pretrained(tmp_path)
        assert type(again) is VisionLanguageProcessor
        assert again.image_tokens == TOKENS
        assert again.image_processor.transform == processor.image_processor.transform
        found = again([photo()], "<image>What is on the table?")
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert again.decode(found["input_ids"][0], skip_special_tokens=True) == "What is on the table?"
    assert transformers_log == []
    assert capfd.readouterr() == ("", "")


def test_processor_and_model_agree(tiny: Any, tokenizer: Any) -> None:
    model = tiny.model("clip", "pool", text={"vocab_size": len(tokenizer)}, image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    image_processor = SalticidImageProcessor.from_preset("clip", size=16)
    inputs = VisionLanguageProcessor(image_processor, tokenizer, image_tokens=model.config.image_tokens)(photo(), "<image>a dog")
    assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]
    wrong = VisionLanguageProcessor(image_processor, tokenizer, image_tokens=model.config.image_tokens + 1)(photo(), "<image>a dog")
    with pytest.raises(InputError, match="5 image placeholders but the photos give 4"):
        model(**wrong)
