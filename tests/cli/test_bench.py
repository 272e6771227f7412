from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from salticid.bench import bandwidth, runners, training
from salticid.bench import child as child_module
from salticid.bench.child import Peak

SHORT = ("--prompt", 12, "--new-tokens", 3)
MEASURED = Peak(libraries=10**8, whole=3 * 10**8, answer=2 * 10**8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gigabyte is read, no process started, and no layer of a large model made."""
    monkeypatch.setattr(training, "saved_per_token", lambda *_: 1000)
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda: 20e9)
    monkeypatch.setattr(child_module, "measure_peak", lambda *_: MEASURED)


def test_a_model_is_measured_without_a_verb(run: Any, tiny_model_folder: Path) -> None:
    result = run("bench", tiny_model_folder, *SHORT, "--rounds", 2, "--precision", "fp32", "--against", "transformers")
    assert (result.code, result.err) == (0, "")
    assert "12 tokens answered with 3; median (slowest-fastest) of 2 rounds." in result.out
    assert "Memory is read at 20.0 GB/s here" in result.out
    assert "a whole process that answers once: 0.20 GB." in result.out
    rows = result.out.splitlines()[-2:]
    assert rows[0].startswith("| salticid |")
    assert rows[1].startswith("| transformers |")
    assert rows[1].endswith(" 3 of 3 |")


def test_json_has_a_ratio_for_each_peer(run: Any, tiny_model_folder: Path) -> None:
    result = run("bench", "speed", tiny_model_folder, *SHORT, "--rounds", 1, "--against", "transformers", "--no-memory", "--json")
    values = json.loads(result.out)
    ours, theirs = values["runners"]
    assert values["peak_memory"] is None
    assert values["machine"].keys() >= {"date", "processor", "threads", "torch", "transformers"}
    assert ours["name"] == "salticid"
    assert theirs["ratio"].keys() == {"prefill", "decode"}
    assert ours["decode_tokens_per_s"]["low"] <= ours["decode_tokens_per_s"]["median"] <= ours["decode_tokens_per_s"]["high"]


def test_shapes_and_threads(run: Any) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        result = run("bench", "--shape", "nano", "--layers", 1, *SHORT, "--rounds", 1, "--threads", 1)
    finally:
        torch.set_num_threads(before)
    assert result.code == 0
    assert " 1 threads" in result.out
    assert "nano (random weights, 1 layers), bf16" in result.out


def test_memory_needs_no_weights(run: Any) -> None:
    values = json.loads(run("bench", "memory", "--shape", "phi-2", "--layers", 2, "--json").out)
    assert {row["precision"] for row in values["inference"]} | values["refused"].keys() == {"fp32", "bf16", "int8", "int4"}
    assert [row["stage"][0] for row in values["training"]] == ["1", "2"]
    shown = run("bench", "memory", "--shape", "nano", "--precision", "bf16", "--measure").out
    assert shown.splitlines()[-1].endswith("| 0.20 GB |")


def test_memory_of_a_recipe(run: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "stage.yaml"
    recipe.write_text(
        "name: mine\nmodel: a\noutput: b\ntrain: {connector: {learning_rate: 1.0e-3}}\n"
        "data: {sources: [{kind: flickr8k, path: p}]}\nschedule: {steps: 1, batch_size: 1}\n"
        "lora: {rank: 4, targets: [q_proj]}\n"
    )
    values = json.loads(run("bench", "memory", "--shape", "nano", "--train", recipe, "--precision", "bf16", "--json").out)
    (stage,) = values["training"]
    connector = values["inference"][0]["weights"]["connector"] // 2
    assert stage["stage"] == "mine"
    assert stage["learning"] == connector + 18 * 4 * (576 + 576)


def test_experts(run: Any) -> None:
    result = run("bench", "experts", "--shape", "nano", "--precision", "fp32", "--prompt", 4, "--rounds", 1)
    assert (result.code, result.err) == (0, "")
    assert [line.split(" | ")[0] for line in result.out.splitlines()[-5:]] == [
        "| dense",
        "| all experts",
        "| eager",
        "| grouped_mm",
        "| batched_mm",
    ]


def test_kernels(run: Any) -> None:
    options = ("bench", "kernels", "--shape", "nano", "--precision", "int8", "--rows", 2, "--rounds", 1)
    result = run(*options)
    assert (result.code, result.err) == (0, "")
    rows = [line.split(" | ") for line in result.out.splitlines() if line.startswith("| 576x576 ")]
    assert {row[2] for row in rows} >= {"packed", "unpacked"}
    values = json.loads(run(*options, "--json").out)
    assert {tuple(each["shape"]) for each in values["kernels"]} >= {(576, 576), (1536, 576), (576, 1536)}
    assert values["bandwidth"] > 0


def test_help(run: Any) -> None:
    for verb in (None, "speed", "memory", "experts", "kernels"):
        result = run("bench", *filter(None, [verb]), "--help")
        assert result.code == 0
        assert "Example:  salticid bench" in result.out


def test_refusals(run: Any, one_clear_line: Any, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_clear_line(run("bench", "speed"), 2, "give either a model or --shape")
    one_clear_line(run("bench", "no-such-model"), 3, "no model 'no-such-model'")
    one_clear_line(run("bench", "--shape", "phi-9"), 2, "unknown shape 'phi-9'; known: phi-2")
    one_clear_line(run("bench", "--shape", "phi-2", "--layers", 99), 2, "has 32 decoder layers")
    one_clear_line(run("bench", tiny_model_folder, "--precision", "fp7"), 2, "unknown precision 'fp7'; known: fp32")
    one_clear_line(run("bench", tiny_model_folder), 2, "more than the 256 that the model reads")
    one_clear_line(run("bench", tiny_model_folder, "--against", "onnx"), 2, "unknown peer 'onnx'; known: transformers, openvino")
    one_clear_line(run("bench", "memory", "--shape", "nano", "--train", "none.yaml"), 2, "no recipe at none.yaml")
    one_clear_line(run("bench", "experts", "--shape", "phi-9"), 2, "unknown shape 'phi-9'")
    one_clear_line(run("bench", "kernels", "--precision", "fp7"), 2, "unknown precision 'fp7'")
    monkeypatch.setattr(runners, "find_spec", lambda _: None)
    one_clear_line(run("bench", tiny_model_folder, "--against", "llama.cpp"), 6, "run: pip install llama-cpp-python gguf")
