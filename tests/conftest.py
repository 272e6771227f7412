"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
WORDS = ("What is in this photo?", "Describe the photo.", "a dog on the beach", "yes", "no", "I don't know.", "two red cups on a table")

COLOURS = ("red", "green", "blue", "white", "black")


def pytest_sessionfinish() -> None:
    """Commands freeze what they import; libraries that look at exit whether everything of theirs has gone would complain."""
    gc.unfreeze()


@pytest.fixture
def shared() -> Path:
    """Folder of recorded upstream outputs and data, where a checkout has one beside it."""
    if not (SHARED / "fixtures").is_dir():
        pytest.skip("needs the recorded upstream outputs beside the checkout")
    return SHARED


@pytest.fixture
def torch_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where our own kernels were not compiled or the processor cannot run them: torch's serve."""
    from salticid.quant import native

    monkeypatch.setattr(native, "available", lambda: False)


@pytest.fixture
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors where float32 is multiplied as it is; with AVX2 alone the kernels of small weights round it to bfloat16."""
    from salticid.quant import kernels

    monkeypatch.setattr(kernels, "ROUNDS_FLOAT32", False)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder with random weights, built like the embedded model; do not write to it."""
    import torch

    from salticid.models import SalticidImageProcessor, VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor

    tokenizer = _tiny_tokenizer()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = VisionLanguageConfig(
        vision_config={"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64},
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
            # Wide enough that answers differ from photo to photo, and are not one token over and over.
            "initializer_range": 0.5,
        },
        connector_config={"depth": 2, "hidden_size": 32, "norm": True},
        image_token_id=image_id,
        template="nano",
    )
    torch.manual_seed(0)
    model = VisionLanguageModel(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    image_processor = SalticidImageProcessor.from_preset("efficientnet_lite", size=64)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    VisionLanguageProcessor(image_processor, tokenizer, image_tokens=config.image_tokens).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tasks_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the template of TinyGPT-V's stage 4, whose tasks have identifiers; do not write to it."""
    import shutil

    folder = tmp_path_factory.mktemp("models") / "tasks"
    shutil.copytree(tiny_model_folder, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"template": "tinygpt_v_tasks"}))
    return folder


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """`asked = say(answer)`: from now on every model answers so; `asked` collects the prompts."""

    def script(answer: str) -> list[Any]:
        from salticid.engine import vision_language

        asked: list[Any] = []
        tokenizer = _tiny_tokenizer()

        def scripted(_: Any, inputs: Any, *__: Any) -> Iterator[int]:
            asked.append(tokenizer.decode(inputs["input_ids"][0]))
            yield from tokenizer(answer, add_special_tokens=False)["input_ids"]

        monkeypatch.setattr(vision_language, "generate_tokens", scripted)
        return asked

    return script


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniature data sets with photos, in the layout of the real ones: `flickr8k/`, `daquar/` and `coco/` below one folder."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data")
    names = [f"{number:012d}.png" for number in range(60)]
    for kind in ("flickr8k", "daquar", "coco"):
        (root / kind / "images").mkdir(parents=True)
        for number, name in enumerate(names):
            Image.new("RGB", (24, 20), COLOURS[number % len(COLOURS)]).save(root / kind / "images" / name)
    captions = [{"image": name, "captions": [f"A dog number {number} runs on the beach ."] * 5} for number, name in enumerate(names)]
    (root / "flickr8k" / "train.json").write_text(json.dumps(captions[8:]))
    (root / "flickr8k" / "dev.json").write_text(json.dumps(captions[:8]))
    rows = [{"image": name, "question": "what is on the table", "answer": "lamp"} for name in names]
    rows += [{"image": name, "question": "how many chairs are there", "answer": "2"} for name in names]
    (root / "daquar" / "train.json").write_text(json.dumps(rows))
    objects = [
        [
            {"category": ("dog", "cat", "cup")[number % 3], "bbox": [0, 0, 300, 300], "iscrowd": 0},
            {"category": ("bench", "kite", "person")[number % 2], "bbox": [320, 100, 300, 300], "iscrowd": 0},
        ]
        for number in range(len(names))
    ]
    images = [
        {"image": name, "width": 640, "height": 480, "captions": [], "objects": boxes} for name, boxes in zip(names, objects, strict=True)
    ]
    (root / "coco" / "train.json").write_text(
        json.dumps({"categories": ["dog", "cat", "cup", "bench", "kite", "person"], "images": images})
    )
    return root


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<|endoftext|>", bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
