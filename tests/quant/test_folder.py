"""Folders quantised a few rows at a time: the same as in memory, whatever the source's precision and files; whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salticid.checkpoints.load import load_model, load_processor
from salticid.checkpoints.lora import write_lora
from salticid.checkpoints.upcycle import upcycle_folder
from salticid.data.collate import Collator
from salticid.data.datasets import SOURCES
from salticid.data.templates import get_template
from salticid.errors import CheckpointError, ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.models.moe import ExpertsConfig
from salticid.quant import quantize_folder, quantize_model, stream
from salticid.quant.calibrate import Calibration
from salticid.quant.files import Like, TensorFile
from salticid.quant.rounding import InputStatistics

Build = Callable[[str], VisionLanguageModel]
Inputs = dict[str, torch.Tensor]


@torch.no_grad()
def logits(model: VisionLanguageModel, inputs: Inputs) -> torch.Tensor:
    return model.eval()(**inputs).logits.float()


@pytest.fixture
def calibration(data_folder: Path) -> Calibration:
    source = SOURCES["flickr8k"](data_folder / "flickr8k")
    return Calibration([source.example(index, seed=0) for index in range(4)])


@pytest.mark.parametrize("options", [{"bits": 8}, {"bits": 4, "group": 32}, {"bits": 4, "group": 64, "words": 4, "tower": 4}])
@pytest.mark.parametrize("make", ["llama tied", "phi", "gemma", "qformer", "experts"])
def test_a_folder_is_what_it_would_be_in_memory(
    make: str, options: dict[str, int], build: Build, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK", 64 * 64)
    build(make).save_pretrained(tmp_path / "float")
    quantize_folder(tmp_path / "float", tmp_path / "small", **options)
    expected = quantize_model(load_model(tmp_path / "float"), **options)
    assert torch.equal(logits(load_model(tmp_path / "small"), inputs), logits(expected, inputs))
    expected.save_pretrained(tmp_path / "memory")
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("small", "memory"))
    assert {name: tensor.dtype for name, tensor in mine.items()} == {name: tensor.dtype for name, tensor in theirs.items()}
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("small", "memory"))
    assert first["quantization_config"] == second["quantization_config"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sources(dtype: torch.dtype, build: Build, inputs: Inputs, tmp_path: Path) -> None:
    model = build("experts")
    expected = logits(model, inputs)
    model.to(dtype).save_pretrained(tmp_path / "half")
    for bits, limit in ((8, 0.05), (4, 0.25)):
        quantize_folder(tmp_path / "half", tmp_path / f"{bits}", bits=bits)
        small = logits(load_model(tmp_path / f"{bits}"), inputs)
        assert (small - expected).norm() < limit * expected.norm()


def test_shards(build: Build, inputs: Inputs, tmp_path: Path) -> None:
    build("experts").save_pretrained(tmp_path / "whole")
    build("experts").save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for name in ("whole", "shards"):
        quantize_folder(tmp_path / name, tmp_path / f"{name}-4", bits=4)
    contents = [(tmp_path / f"{name}-4" / "model.safetensors").read_bytes() for name in ("whole", "shards")]
    assert contents[0] == contents[1]
    next((tmp_path / "shards").glob("*-00002-*")).unlink()
    with pytest.raises(CheckpointError, match="missing, damaged"):
        quantize_folder(tmp_path / "shards", tmp_path / "never", bits=4)
    assert not (tmp_path / "never").exists()


def test_interrupted_half_way_nothing_is_left(build: Build, tmp_path: Path) -> None:
    build("llama tied").save_pretrained(tmp_path / "float")
    done = []

    def interrupt(name: str) -> None:
        done.append(name)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_folder(tmp_path / "float", tmp_path / "small", bits=4, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


def test_what_cannot_be_quantised_is_refused(build: Build, tmp_path: Path) -> None:
    build("llama tied").save_pretrained(tmp_path / "float")
    quantize_folder(tmp_path / "float", tmp_path / "small", bits=4)
    with pytest.raises(ConfigurationError, match="quantised already"):
        quantize_folder(tmp_path / "small", tmp_path / "again", bits=4)
    adapted = tmp_path / "adapted"
    shutil.copytree(tmp_path / "float", adapted)
    module = "language_model.model.layers.0.self_attn.o_proj"
    write_lora(adapted, {f"{module}.lora_A.weight": torch.ones(2, 64), f"{module}.lora_B.weight": torch.ones(64, 2)}, 2.0, 0.0)
    with pytest.raises(ConfigurationError, match="merge it first"):
        quantize_folder(adapted, tmp_path / "again", bits=4)
    tensors = load_file(tmp_path / "float" / "model.safetensors")
    extra = tensors | {"language_model.extra": torch.ones(3)}
    del extra["connector.layers.0.bias"]
    save_file(extra, tmp_path / "float" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing \(connector\.layers\.0\.bias\); 1 unexpected \(language_model\.extra\)"):
        quantize_folder(tmp_path / "float", tmp_path / "again", bits=4)
    assert not (tmp_path / "again").exists()


def test_methods_and_samples_belong_together(tiny_model_folder: Path, calibration: Calibration, tmp_path: Path) -> None:
    for options, message in (
        ({"method": "gptq"}, "'gptq' needs samples; give --calibrate"),
        ({"calibration": calibration}, "'rtn' looks at no samples"),
        ({"method": "magic"}, "unknown method 'magic'; known: rtn, awq, gptq"),
        ({"method": "awq", "calibration": calibration, "bits": 8}, "'awq' is for 4 bits"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            quantize_folder(tiny_model_folder, tmp_path / "small", **{"bits": 4} | options)
    assert not any(tmp_path.iterdir())


def with_experts(folder: Path, out: Path) -> Path:
    upcycle_folder(folder, out, ExpertsConfig(), noise=0.3)
    return out


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_calibration_gains_on_its_samples(
    method: str, experts: bool, tiny_model_folder: Path, calibration: Calibration, tmp_path: Path
) -> None:
    source = with_experts(tiny_model_folder, tmp_path / "experts") if experts else tiny_model_folder
    report = quantize_folder(source, tmp_path / "small", 4, 32, method=method, calibration=calibration)
    assert len(report.gains) == (4 + 2 + 4 + 3 if experts else 14)
    nearest, chosen = (sum(getattr(gain, kind) for gain in report.gains) for kind in ("nearest", "chosen"))
    assert 0 < chosen < (0.9 if method == "gptq" else 0.98) * nearest
    model = load_model(tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["method"] == method
    scales = [name for name, _ in model.named_parameters() if name.endswith("input_scale")]
    assert len(scales) == (len(report.gains) if method == "awq" else 0)


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_layer_is_calibrated_on_what_the_rounded_layers_before_it_give(
    method: str, experts: bool, tiny_model_folder: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = with_experts(tiny_model_folder, tmp_path / "experts") if experts else tiny_model_folder
    seen: list[torch.Tensor] = []
    add = InputStatistics.add

    def note(statistics: InputStatistics, x: torch.Tensor) -> None:
        seen.append(x.clone())
        add(statistics, x)

    monkeypatch.setattr(InputStatistics, "add", note)
    quantize_folder(source, tmp_path / "small", 4, 32, method=method, calibration=calibration)
    # Per sample: the projections of attention, and two matrices for each of four experts, or three of a dense network.
    second = (4 + 2 * 4 if experts else 7) * len(calibration.examples)
    model, plain = load_model(tmp_path / "small").eval(), load_model(source).eval()
    model.vision_tower, model.connector = plain.vision_tower, plain.connector
    model.set_input_embeddings(plain.get_input_embeddings())
    inputs: list[torch.Tensor] = []
    projection = model.language_model.model.layers[1].self_attn.q_proj
    projection.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    batch = Collator(load_processor(source), get_template(model.config.template))(calibration.examples[:1])
    with torch.no_grad():
        model(**{name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "pixel_values")})
    torch.testing.assert_close(seen[second], inputs[0], rtol=1e-3, atol=1e-3)


def test_the_embedded_model_still_loads_bit_for_bit() -> None:
    folder = Path(str(files("salticid"))) / "assets" / "nano"
    stored, loaded = load_file(folder / "model.safetensors"), load_model(folder).state_dict()
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == {"bits": 8, "quant_method": "salticid"}
    for name, tensor in stored.items():
        assert torch.equal(loaded[name].to(tensor.dtype), tensor), name


def test_a_file_is_written_in_any_order_and_parts(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).view(2, 3),
        "b": torch.arange(128, dtype=torch.uint8),
        "c": torch.ones(1).bfloat16(),
    }
    likes = {name: Like(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with TensorFile(tmp_path / "model.safetensors", likes) as file:
        file.write("b", tensors["b"][64:], 64)
        file.write("a", tensors["a"])
        file.write("c", tensors["c"])
        file.write("b", tensors["b"][:64])
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert (8 + int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")) % 64 == 0
    unfinished = TensorFile(tmp_path / "x", likes)
    unfinished.__enter__()
    unfinished.write("b", tensors["b"])
    with pytest.raises(CheckpointError, match="2 tensors were not written whole, such as a"):
        unfinished.__exit__(None, None, None)


MEASURE = """
import sys
from pathlib import Path
from salticid.quant.folder import quantize_folder
def read(key):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
Path("/proc/self/clear_refs").write_text("5")
before = read("VmRSS")
quantize_folder(sys.argv[1], sys.argv[2], bits=int(sys.argv[3]))
print(read("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")
@pytest.mark.parametrize("bits", [8, 4])
def test_peak_memory_does_not_grow_with_the_model(bits: int, build: Build, tmp_path: Path) -> None:
    model = build("llama untied")
    text = model.config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size = 1024, 4096, 16, 8000
    text.head_dim = 256
    VisionLanguageModel(model.config).save_pretrained(tmp_path / "float", max_shard_size="300MB")
    size = sum(path.stat().st_size for path in (tmp_path / "float").glob("*.safetensors"))
    largest = 8000 * 1024 * 4
    command = [sys.executable, "-c", MEASURE, tmp_path / "float", tmp_path / "small", str(bits)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert size > 900e6
    assert grown < largest + 250e6
