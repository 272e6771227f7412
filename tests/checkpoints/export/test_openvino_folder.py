"""OpenVINO answers about a photo as Salticid does, with the exported files and the processor alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from salticid.checkpoints.export import openvino_folder
from salticid.checkpoints.export.openvino_folder import export_openvino
from salticid.errors import CheckpointError, InputError
from salticid.models import VisionLanguageProcessor

VIT = {"vision": {"num_hidden_layers": 2}}
QFORMER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 32,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nano": (
        "efficientnet_lite",
        "llama",
        {"vision_layers": [4, -1], "vision": {"image_size": 64}, "connector": {"norm": True, "shuffle": 2}},
    ),
    "tinygpt-v": (
        "blip_2_vision_model",
        "phi",
        {
            "connector": {"kind": "qformer", "queries": 3, "activation": None, "qformer_config": QFORMER},
            "norms": {"query": True, "key": True, "attention_output": True},
            "vision_keep_cls": True,
            "template": "tinygpt_v_tasks",
        },
    ),
    "llava": ("clip_vision_model", "mistral", {"vision_layers": [-2], "template": "chatml"}),
    "gemma2": ("siglip_vision_model", "gemma2", {"text": {"head_dim": 16, "final_logit_softcapping": 2.0}}),
}


def answer(folder: Path, photo: Image.Image, question: str, limit: int) -> list[int]:
    """The function of docs/export.md, with ids for words."""
    import openvino

    processor = VisionLanguageProcessor.from_pretrained(folder)
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    parts = ("vision_embeddings", "text_embeddings", "language")
    see, words, speak = (core.compile_model(folder / f"openvino_{part}_model.xml", "CPU") for part in parts)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    inputs = processor(images=photo, text=processor.apply_chat_template([message], tokenize=False), return_tensors="np")
    tokens = words(inputs["input_ids"])["inputs_embeds"]
    features = see(inputs["pixel_values"])["image_features"]
    tokens[inputs["input_ids"] == processor.image_token_id] = features.reshape(-1, features.shape[-1])
    request, written = speak.create_infer_request(), []
    for _ in range(limit):
        logits_V = request.infer({"inputs_embeds": tokens})["logits"][0, -1]
        logits_V[processor.image_token_id] = -np.inf
        written.append(int(logits_V.argmax()))
        tokens = words(np.array([written[-1:]]))["inputs_embeds"]
    return written


@pytest.mark.parametrize("name", MODELS)
def test_openvino_answers_alike(name: str, build: Callable[..., Any], photo: Image.Image, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    tower, language, fields = MODELS[name]
    model, processor = build(tower, language, **fields)
    export_openvino(model, processor, tmp_path / "out", "fp32")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    inputs = processor(images=[photo], text=processor.apply_chat_template([message], tokenize=False))
    with torch.inference_mode():
        words = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, inputs["input_ids"].shape[1] :]
    assert answer(tmp_path / "out", photo, "What is this?", 8) == words.tolist()


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_smaller_weights(precision: str, build: Callable[..., Any], photo: Image.Image, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    built = build("siglip_vision_model", text={"hidden_size": 256, "intermediate_size": 512})
    sizes = []
    for chosen in ("fp32", precision):
        export_openvino(*built, tmp_path / chosen, chosen)
        sizes.append((tmp_path / chosen / "openvino_language_model.bin").stat().st_size)
    assert sizes[0] / sizes[1] > {"fp16": 1.9, "int8": 3.5, "int4": 6}[precision]
    assert len(answer(tmp_path / precision, photo, "What is this?", 3)) == 3


def test_refusals_write_nothing(build: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown precision 'bf16' of OpenVINO files; known: fp32, fp16, int8, int4"):
        export_openvino(*build(), tmp_path / "out", "bf16")
    with pytest.raises(InputError, match="openvino cannot trace experts"):
        export_openvino(*build(experts={"experts": 2, "top_k": 1, "layers": "all"}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_folder_in_the_way(build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    built = build()

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("Check 'bin_file' failed:\nCould not write to file")

    with monkeypatch.context() as patched:
        patched.setattr(openvino_folder, "vision_graph", lambda _: object())
        patched.setattr(openvino, "save_model", full)
        with pytest.raises(CheckpointError, match="Could not write to file; free some space"):
            export_openvino(*built, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="exists already; choose another folder"):
        export_openvino(*built, tmp_path)
