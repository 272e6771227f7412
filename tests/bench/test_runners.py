"""Peers run the same weights: the same greedy tokens, where their arithmetic is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from salticid.bench import runners
from salticid.bench.prompt import random_prompt
from salticid.bench.runners import make_peer
from salticid.bench.runners.llama_cpp_gguf import write_gguf
from salticid.bench.runners.salticid_engine import SalticidRunner
from salticid.bench.speed import Runner
from salticid.engine.load import load
from salticid.errors import InputError, MissingExtraError
from salticid.models import VisionLanguageConfig, VisionLanguageModel


@pytest.fixture
def model(tiny_model_folder: Path) -> VisionLanguageModel:
    return load(tiny_model_folder, "fp32", "cpu").model


def tokens(runner: Runner, model: VisionLanguageModel) -> list[int]:
    written: list[int] = []
    runner.run(random_prompt(model.config, 9), 12, written.append)
    return written


def other_decoder(model_type: str, **more: object) -> VisionLanguageModel:
    text = {"model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = VisionLanguageConfig(
        vision_config={"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 32},
        text_config=text | {"num_key_value_heads": 2, "vocab_size": 320, "initializer_range": 0.5, "max_position_embeddings": 64},
        **more,
    )
    return VisionLanguageModel(config).eval()


def test_transformers_writes_our_tokens(model: VisionLanguageModel) -> None:
    ours = tokens(SalticidRunner(model), model)
    assert len(ours) == 12
    assert tokens(make_peer("transformers", model, "fp32", 1), model) == ours


@pytest.mark.parametrize("model_type", ["llama", "phi", "qwen2"])
def test_openvino_writes_our_tokens(model_type: str) -> None:
    pytest.importorskip("openvino")
    decoder = other_decoder(model_type)
    assert tokens(make_peer("openvino", decoder, "fp32", 1), decoder) == tokens(SalticidRunner(decoder), decoder)


@pytest.mark.parametrize("model_type", ["llama", "phi", "qwen2"])
def test_llama_cpp_writes_our_tokens(model_type: str) -> None:
    pytest.importorskip("llama_cpp")
    decoder = other_decoder(model_type)
    assert tokens(make_peer("llama.cpp", decoder, "fp32", 1), decoder) == tokens(SalticidRunner(decoder), decoder)


@pytest.mark.parametrize("model_type", ["llama", "phi", "qwen2"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_weight_is_in_the_gguf_file(model_type: str, precision: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    decoder = other_decoder(model_type)
    reader = gguf.GGUFReader(write_gguf(decoder, precision, tmp_path / "decoder.gguf"))
    stored = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    weights = decoder.language_model.state_dict()
    assert len(stored) == len(weights)
    assert sum(values.size for values in stored.values()) == sum(weight.numel() for weight in weights.values())
    np.testing.assert_allclose(stored["token_embd.weight"], weights["model.embed_tokens.weight"], atol=0 if precision == "fp32" else 0.02)
    queries = weights["model.layers.1.self_attn.q_proj.weight"].numpy()
    moved = model_type == "llama"
    order = [half * 16 + channel + head * 32 for head in range(2) for channel in range(16) for half in range(2)]
    np.testing.assert_allclose(stored["blk.1.attn_q.weight"], queries[order] if moved else queries, atol=0 if precision == "fp32" else 0.02)


def test_decoders_that_a_peer_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda _: object())
    sparse = other_decoder("llama", experts={"experts": 2, "top_k": 1, "layers": "all"})
    with pytest.raises(InputError, match="openvino cannot trace experts"):
        make_peer("openvino", sparse, "bf16", 1)
    for decoder in (sparse, other_decoder("phi", norms={"query": True, "key": True})):
        with pytest.raises(InputError, match=r"llama\.cpp has no such decoder"):
            make_peer("llama.cpp", decoder, "bf16", 1)


def test_peers_that_are_unknown_or_absent(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown peer 'onnx'; known: transformers, openvino"):
        make_peer("onnx", model, "bf16", 1)
    monkeypatch.setattr(runners, "find_spec", lambda _: None)
    for name, command in (("openvino", "pip install openvino nncf"), ("llama.cpp", "pip install llama-cpp-python gguf")):
        with pytest.raises(MissingExtraError, match=command):
            make_peer(name, model, "bf16", 1)
