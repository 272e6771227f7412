"""The extra normalisations: switched one by one, for any decoder, under LoRA and in half precision."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.models.norms import NormsConfig, add_norms

PARALLEL = {"phi": {}, "stablelm": {"use_parallel_residual": True}}
SEQUENTIAL: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {}, "mistral": {}, "gemma": {"head_dim": 8}, "gemma2": {"head_dim": 8}}
DECODERS = PARALLEL | SEQUENTIAL
SWITCHES = ("query", "key", "attention_output")
NAMES = {"query": "q_layernorm", "key": "k_layernorm", "attention_output": "output_layernorm"}
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def decoder(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(name, **sizes, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **DECODERS[name])
    return AutoModelForCausalLM.from_config(config).eval()


def with_norms(name: str, **switches: Any) -> PreTrainedModel:
    model = decoder(name)
    add_norms(model, NormsConfig(**switches))
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def projected(model: PreTrainedModel, projection: str) -> Tensor:
    """What the first layer's query or key projection hands on, (B, T, H, K)."""
    found: list[Tensor] = []
    attention = model.base_model.layers[0].self_attn
    handle = getattr(attention, projection).register_forward_hook(lambda _, inputs, output: found.append(output))
    logits(model)
    handle.remove()
    return found[0].unflatten(-1, (-1, attention.head_dim))


@pytest.mark.parametrize("name", DECODERS)
def test_each_switch_adds_its_norm_and_nothing_else(name: str) -> None:
    plain = decoder(name)
    for switch in SWITCHES:
        model = with_norms(name, **{switch: True})
        new = {key for key in model.state_dict() if key not in plain.state_dict()}
        assert {key.split(".")[-2] for key in new} == {NAMES[switch]}
        assert len(new) == (2 if switch == "attention_output" else 4)
        assert not torch.allclose(logits(model), logits(plain), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma"])
def test_queries_are_normalised_head_by_head_before_the_rotary_embedding(name: str) -> None:
    plain, model = decoder(name), with_norms(name, query=True)
    norm = model.base_model.layers[0].self_attn.q_layernorm
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    wanted = F.layer_norm(projected(plain, "q_proj"), (8,), norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(projected(model, "q_proj"), wanted)
    torch.testing.assert_close(projected(model, "k_proj"), projected(plain, "k_proj"))


@pytest.mark.parametrize("name", ["phi", "stablelm"])
def test_decoders_that_know_such_norms_use_ours(name: str) -> None:
    model = with_norms(name, query=True)
    seen: list[Tensor] = []
    attention = model.base_model.layers[0].self_attn
    attention.q_layernorm.register_forward_hook(lambda _, inputs, output: seen.append(output))
    logits(model)
    assert seen[0].shape == (2, 4, 5, 8)
    torch.testing.assert_close(seen[0].mean(-1), torch.zeros(2, 4, 5), atol=1e-6, rtol=0)
    assert isinstance(attention.k_layernorm, nn.Identity)


@pytest.mark.parametrize("name", ["phi", "llama"])
def test_attention_output_is_normalised_before_the_sum(name: str) -> None:
    plain, model = decoder(name), with_norms(name, attention_output=True)
    weight = model.base_model.layers[0].self_attn.output_layernorm.weight
    nn.init.normal_(weight)
    before, after = [], []
    plain.base_model.layers[0].self_attn.register_forward_hook(lambda _, inputs, outputs: before.append(outputs[0]))
    model.base_model.layers[0].self_attn.register_forward_hook(lambda _, inputs, outputs: after.append(outputs[0]))
    logits(plain), logits(model)
    scale = (before[0].pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(after[0], before[0] * scale * weight)


def test_input_norm_can_be_left_out() -> None:
    model = with_norms("llama", input=False)
    assert not [key for key in model.state_dict() if "input_layernorm" in key]
    assert not torch.allclose(logits(model), logits(decoder("llama")), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_lora_is_added_before_the_norm(name: str) -> None:
    peft = pytest.importorskip("peft")
    model = with_norms(name, query=True, key=True, attention_output=True)
    output = "dense" if name == "phi" else "o_proj"
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", output], init_lora_weights=False)
    wrapped = peft.inject_adapter_in_model(lora, copy.deepcopy(model)).eval()
    apart = logits(wrapped)
    assert not torch.allclose(apart, logits(model), atol=1e-4)
    for module in wrapped.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    torch.testing.assert_close(logits(wrapped), apart, atol=1e-5, rtol=0)


def test_a_copy_has_norms_of_its_own() -> None:
    model = with_norms("llama", query=True, attention_output=True)
    other, before = copy.deepcopy(model), logits(model)
    for key, value in other.named_parameters():
        if "self_attn" in key and "layernorm" in key:
            value.data.mul_(3)
    torch.testing.assert_close(logits(model), before)
    assert not torch.allclose(logits(other), before, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_precision_outside_the_norms(dtype: torch.dtype) -> None:
    model = with_norms("llama", query=True, key=True, attention_output=True).to(dtype)
    found = logits(model)
    assert found.dtype == dtype
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ["phi", "llama"])
def test_gradients_reach_every_norm(name: str) -> None:
    model = with_norms(name, query=True, key=True, attention_output=True)
    model(input_ids=IDS).logits.pow(2).sum().backward()
    norms = [value for key, value in model.named_parameters() if "self_attn" in key and key.endswith("layernorm.weight")]
    assert len(norms) == 6
    assert all(value.grad.abs().sum() > 0 for value in norms)


def test_the_model_class_saves_and_loads_them(tmp_path: Path) -> None:
    config = VisionLanguageConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        text_config={**decoder("phi").config.to_dict()},
        norms={"query": True, "key": True, "attention_output": True},
    )
    model = VisionLanguageModel(config).eval()
    for key, value in model.named_parameters():
        if "self_attn" in key and "layernorm" in key:
            nn.init.normal_(value)
    model.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path).eval()
    assert loaded.config.norms == config.norms
    with torch.no_grad():
        words = {"input_ids": IDS + 1}
        torch.testing.assert_close(loaded(**words).logits, model(**words).logits)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"qk": True}, "known: query, key"),
        ({"query": 1}, "true or false"),
        ({"head_eps": True}, "a number"),
        ({"head_eps": -1.0}, "a number from 0 on"),
        ({"output_eps": float("nan")}, "a number from 0 on"),
    ],
)
def test_wrong_options_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        VisionLanguageConfig(norms=values)


def test_a_decoder_that_normalises_already_is_refused() -> None:
    config = AutoConfig.for_model("phi", vocab_size=16, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4)
    config.qk_layernorm = True
    with pytest.raises(ConfigurationError, match="already normalises"):
        add_norms(AutoModelForCausalLM.from_config(config), NormsConfig(key=True))
