"""Every family's weights and sizes are in the file; where llama.cpp is at hand, it computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salticid.checkpoints.export.gguf_language import ARCHITECTURES, FILE_TYPES, check_language, write_language
from salticid.checkpoints.export.gguf_vocabulary import NORMAL, Vocabulary
from salticid.errors import InputError
from salticid.models.configuration import LANGUAGE_MODELS

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama scaled": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}}),
    "mistral": ("mistral", {"head_dim": 16, "sliding_window": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "phi": ("phi", {}),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "tie_word_embeddings": True}),
    "stablelm parallel": ("stablelm", {"use_parallel_residual": True}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}),
}


def write(model: Any, file: Path, precision: str = "fp32") -> Path:
    rows = model.config.text_config.vocab_size
    vocabulary = Vocabulary("gpt2", [f"t{index}" for index in range(rows)], [NORMAL] * rows, {"bos": 0, "eos": 0}, merges=["t 1"])
    return write_language(model, vocabulary, FILE_TYPES[precision], file)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_in_the_file(family: str, build: Callable[..., Any], read: Any, tmp_path: Path) -> None:
    language, text = FAMILIES[family]
    model, _ = build(language=language, text=text)
    stored, keys = read(write(model, tmp_path / "model.gguf"))
    weights = dict(model.language_model.state_dict())
    head = weights.pop("lm_head.weight")
    if model.config.text_config.tie_word_embeddings and language != "stablelm":
        assert "output.weight" not in stored
    else:
        np.testing.assert_array_equal(stored.pop("output.weight"), head)
    assert ("rope_freqs.weight" in stored) == (family == "llama 3")
    stored.pop("rope_freqs.weight", None)
    plus_one = sum(weight.numel() for name, weight in weights.items() if "norm" in name) if language.startswith("gemma") else 0
    assert len(stored) == len(weights)
    total = sum(float(weight.double().sum()) for weight in weights.values())
    assert sum(values.astype(float).sum() for values in stored.values()) == pytest.approx(total + plus_one, abs=1e-2)
    np.testing.assert_array_equal(stored["token_embd.weight"], weights["model.embed_tokens.weight"])
    name = ARCHITECTURES[language].name
    assert keys["general.architecture"] == name
    assert keys[f"{name}.context_length"] == (32 if family == "mistral" else 128), "llama.cpp knows no window of Mistral's"
    assert keys[f"{name}.block_count"] == 2


def test_neighbouring_channels_stand_side_by_side(build: Callable[..., Any], read: Any, tmp_path: Path) -> None:
    model, _ = build(text={"attention_bias": True})
    stored, _ = read(write(model, tmp_path / "model.gguf"))
    attention = model.language_model.model.layers[1].self_attn
    order = [head * 16 + half * 8 + channel for head in range(4) for channel in range(8) for half in range(2)]
    np.testing.assert_array_equal(stored["blk.1.attn_q.weight"], attention.q_proj.weight.detach()[order])
    np.testing.assert_array_equal(stored["blk.1.attn_q.bias"], attention.q_proj.bias.detach()[order])
    np.testing.assert_array_equal(stored["blk.1.attn_k.weight"], attention.k_proj.weight.detach()[order[:32]])


@pytest.mark.parametrize(
    ("precision", "kinds", "error"), [("fp16", {1}, 1e-3), ("bf16", {30}, 5e-3), ("int8", {8}, 1e-2), ("int4", {2, 8}, 0.1)]
)
def test_precisions(precision: str, kinds: set[int], error: float, build: Callable[..., Any], read: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, _ = build(language="qwen2", text={"tie_word_embeddings": False})
    file = write(model, tmp_path / "model.gguf", precision)
    stored, _ = read(file)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert {int(tensor.tensor_type) for tensor in tensors.values() if len(tensor.shape) > 1} == kinds
    assert {int(tensor.tensor_type) for tensor in tensors.values() if len(tensor.shape) == 1} == {0}
    if precision == "int4":
        assert int(tensors["token_embd.weight"].tensor_type) == int(tensors["output.weight"].tensor_type) == 8
    want = model.language_model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    assert np.abs(stored["blk.0.ffn_down.weight"] - want).max() < error * np.abs(want).max()


def test_rows_that_no_block_divides_stay_whole(build: Callable[..., Any], read: Any, tmp_path: Path) -> None:
    model, _ = build(text={"intermediate_size": 40})
    stored, _ = read(write(model, tmp_path / "model.gguf", "int8"))
    np.testing.assert_array_equal(stored["blk.0.ffn_down.weight"], model.language_model.model.layers[0].mlp.down_proj.weight.detach())


@pytest.mark.parametrize(
    ("language", "fields", "says"),
    [
        ("llama", {"experts": {"experts": 2, "top_k": 1, "layers": "all"}}, "no architecture for these experts; export the dense model"),
        ("phi", {"norms": {"query": True}}, "no decoder with extra normalisations .*; export to openvino"),
        ("llama", {"norms": {"input": False}}, "no decoder with extra normalisations"),
        ("llama", {"text": {"hidden_act": "gelu"}}, "llama.cpp's llama computes silu, this model gelu; use openvino"),
        ("phi", {"text": {"qk_layernorm": True}}, "no such normalised queries and keys"),
        ("gemma2", {"text": {"query_pre_attn_scalar": 99}}, "scales queries by the depth of a head"),
        ("gemma", {"text": {"tie_word_embeddings": False}}, "has no output head of its own"),
        (
            "llama",
            {"text": {"mlp_bias": True, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}},
            "'dynamic' has no form",
        ),
    ],
)
def test_what_llama_cpp_cannot_hold(language: str, fields: dict[str, Any], says: str, build: Callable[..., Any]) -> None:
    model, _ = build(language=language, **fields)
    with pytest.raises(InputError, match=says):
        check_language(model)


def test_every_language_model_has_an_architecture(build: Callable[..., Any]) -> None:
    assert set(ARCHITECTURES) == set(LANGUAGE_MODELS)
    check_language(build(norms={"input": True})[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same(family: str, build: Callable[..., Any], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    language, text = FAMILIES[family]
    model, _ = build(language=language, text=text)
    file = write(model, tmp_path / "model.gguf")
    words = {"type_k": 0, "type_v": 0}  # keys and values in float32
    llama = llama_cpp.Llama(str(file), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False, flash_attn=False, **words)
    ids = torch.randint(5, 250, (24,), generator=torch.Generator().manual_seed(3)).tolist()
    llama.eval(ids)
    with torch.inference_mode():
        logits_TV = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(np.array(llama.scores[: len(ids)]), logits_TV, atol=0.02)
