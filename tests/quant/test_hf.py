"""Quantised folders: one small file, read in place, strictly, through every door."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from salticid.checkpoints.load import load_model
from salticid.errors import CheckpointError, ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.quant import Int8Linear, SalticidQuantizationConfig, quantize_model

Build = Callable[[str], VisionLanguageModel]
Inputs = dict[str, torch.Tensor]


@torch.no_grad()
def logits(model: VisionLanguageModel, inputs: Inputs) -> torch.Tensor:
    return model(**inputs).logits


def save(model: VisionLanguageModel, folder: Path) -> VisionLanguageModel:
    quantize_model(model).save_pretrained(folder)
    return model


def header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file start, and what its header says of each."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    entries.pop("__metadata__")
    return 8 + size, entries


def int8_addresses(file: Path) -> list[int]:
    start, entries = header(file)
    return [start + entry["data_offsets"][0] for entry in entries.values() if entry["dtype"] == "I8"]


def mapped_addresses(file: Path) -> list[range]:
    """Where the process has this file in its memory."""
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            first, last = line.split()[0].split("-")
            mapped.append(range(int(first, 16), int(last, 16)))
    return mapped


def edit_config(folder: Path, **quantization: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= quantization
    (folder / "config.json").write_text(json.dumps(config))


def test_the_folder_holds_one_file_of_small_weights(build: Build, tmp_path: Path) -> None:
    save(build("llama tied"), tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {"quant_method": "salticid", "bits": 8}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert dtypes["language_model.model.embed_tokens.weight"] == "I8"
    assert dtypes["language_model.model.embed_tokens.scale"] == "F32"
    assert dtypes["connector.layers.2.weight"] == "I8"
    assert dtypes["connector.layers.2.bias"] == dtypes["language_model.model.norm.weight"] == "F32"
    assert dtypes["vision_tower.model.stem.conv.weight"] == "BF16"
    assert dtypes["vision_tower.model.stem.norm.weight"] == "F32"
    assert not any(name.startswith("language_model.lm_head") for name in dtypes)


@pytest.mark.parametrize("make", ["llama tied", "llama untied", "phi", "gemma", "qformer"])
def test_every_door_loads_it_whole_and_unchanged(make: str, build: Build, inputs: Inputs, tmp_path: Path) -> None:
    expected = logits(save(build(make), tmp_path), inputs)
    loaded, report = VisionLanguageModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for model in (loaded, load_model(tmp_path), AutoModelForImageTextToText.from_pretrained(tmp_path)):
        assert isinstance(model, VisionLanguageModel)
        assert torch.equal(logits(model, inputs), expected)
        assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if name.endswith("scale"))
    tied = loaded.get_output_embeddings().scale is loaded.get_input_embeddings().scale
    assert tied == loaded.config.tie_word_embeddings


def test_saving_again_writes_the_same_tensors(build: Build, tmp_path: Path) -> None:
    save(build("llama tied"), tmp_path / "first")
    load_model(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    start, entries = header(first)
    assert (start, entries) == header(second)
    assert first.read_bytes()[start:] == second.read_bytes()[start:]


def test_bfloat16_loads_the_same_int8(build: Build, inputs: Inputs, tmp_path: Path) -> None:
    original = save(build("llama tied"), tmp_path)
    model = load_model(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == model.vision_tower.model.dtype == torch.bfloat16
    assert torch.equal(model.get_input_embeddings().weight, original.get_input_embeddings().weight)
    assert torch.equal(model.get_input_embeddings().scale.float(), original.get_input_embeddings().scale)
    assert logits(model, inputs).dtype == torch.bfloat16


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory map of the process from /proc")
def test_int8_weights_are_used_where_the_file_is_mapped(build: Build, tmp_path: Path) -> None:
    save(build("llama tied"), tmp_path)
    model = load_model(tmp_path)
    mapped = mapped_addresses(tmp_path / "model.safetensors")
    int8 = [parameter for parameter in model.parameters() if parameter.dtype == torch.int8]
    assert len(int8) > 10
    for parameter in int8:
        assert any(parameter.data_ptr() in addresses for addresses in mapped)


@pytest.mark.parametrize("make", ["llama tied", "phi", "qformer"])
def test_int8_weights_stand_in_the_file_where_the_kernel_can_read_them(make: str, build: Build, tmp_path: Path) -> None:
    save(build(make), tmp_path)
    addresses = int8_addresses(tmp_path / "model.safetensors")
    assert not any(address % 16 for address in addresses)


def test_a_file_that_another_program_wrote_is_read_too(build: Build, inputs: Inputs, tmp_path: Path) -> None:
    expected = logits(save(build("llama tied"), tmp_path), inputs)
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    for length in range(0, 64, 8):
        save_file(tensors, file, metadata={"format": "pt", "author": "a" * length})
        if min(int8_addresses(file)) % 16:
            break
    model = load_model(tmp_path)
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert min(int8_addresses(file)) % 16 == 8
    assert not any(layer.weight.data_ptr() % 16 for layer in layers)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("left", [0.9, 0.3, 0.001])
def test_a_truncated_file_is_one_clear_error(left: float, build: Build, tmp_path: Path) -> None:
    save(build("llama tied"), tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * left)])
    with pytest.raises(CheckpointError, match="damaged") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_scales_and_float_weights_are_refused(build: Build, tmp_path: Path) -> None:
    model = build("llama tied")
    model.save_pretrained(tmp_path / "float")
    save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    del tensors["connector.layers.0.scale"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing \(connector\.layers\.0\.scale\)"):
        load_model(tmp_path)
    file.write_bytes((tmp_path / "float" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"missing \(connector\.layers\.0\.scale"):
        load_model(tmp_path)


def test_a_folder_from_the_future_is_refused(build: Build, tmp_path: Path) -> None:
    save(build("llama tied"), tmp_path)
    edit_config(tmp_path, bits=3)
    with pytest.raises(ConfigurationError, match="3 bits are not supported"):
        load_model(tmp_path)
    edit_config(tmp_path, bits=8, group_size=32)
    with pytest.raises(ConfigurationError, match=r"no option 'group_size'; known: bits, group"):
        load_model(tmp_path)


@pytest.mark.parametrize("words", [8, 4])
@pytest.mark.parametrize("make", ["llama tied", "phi", "gemma", "qformer", "experts"])
def test_four_bits_through_a_folder_and_back(make: str, words: int, build: Build, inputs: Inputs, tmp_path: Path) -> None:
    original = quantize_model(build(make), bits=4, group=32, words=words)
    original.save_pretrained(tmp_path)
    expected = {"quant_method": "salticid", "bits": 4, "group": 32}
    extra = ({"words": 4} if words == 4 else {}) | ({"tower": 8} if make == "experts" else {})
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == expected | extra
    _, entries = header(tmp_path / "model.safetensors")
    dtypes = {name: entry["dtype"] for name, entry in entries.items()}
    assert dtypes["language_model.model.layers.0.self_attn.q_proj.weight"] == "U8"
    assert {dtype for name, dtype in dtypes.items() if name.endswith("scale_zero")} == {"BF16"}
    model = load_model(tmp_path).eval()
    assert torch.equal(logits(model, inputs), logits(original, inputs))
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if name.endswith("scale_zero"))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory map of the process from /proc")
def test_four_bits_in_bfloat16_are_used_where_the_file_is_mapped(build: Build, tmp_path: Path) -> None:
    quantize_model(build("experts"), bits=4).save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.bfloat16)
    mapped = mapped_addresses(tmp_path / "model.safetensors")
    small = [tensor for name, tensor in model.named_parameters() if tensor.dtype == torch.uint8 or name.endswith("scale_zero")]
    assert len(small) > 20
    for parameter in small:
        assert any(parameter.data_ptr() in addresses for addresses in mapped)


def test_from_pretrained_does_not_quantise_on_its_own(build: Build, tmp_path: Path) -> None:
    build("llama tied").save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="quantize_model"):
        VisionLanguageModel.from_pretrained(tmp_path, quantization_config=SalticidQuantizationConfig())
