"""The lean decoder beside the model's own modules: one arithmetic, for every backbone and everything that may be added to one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from salticid.checkpoints.lora import attach_lora, write_lora
from salticid.engine.decoder.decoder import Decoder, LeanDecoder, ModuleDecoder, make_decoder
from salticid.engine.generate import embed_prompt, generate_tokens
from salticid.engine.sampling import GenerationOptions
from salticid.models import VisionLanguageModel
from salticid.quant import quantize_model

Build = Callable[..., VisionLanguageModel]
Prompt = Callable[..., dict[str, Tensor]]
STEPS = 12


def greedy(decoder: Decoder, inputs: dict[str, Tensor]) -> list[int]:
    return list(generate_tokens(decoder, inputs, GenerationOptions(max_new_tokens=STEPS), stop=()))


def plain(model: VisionLanguageModel, inputs: dict[str, Tensor]) -> list[int]:
    ids = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


@torch.inference_mode()
def logits(decoder: Decoder, inputs: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """Of the word after the prompt, and after each of these tokens."""
    cache = decoder.new_cache(1)
    found = [decoder.prefill(embed_prompt(decoder.model, inputs), cache)]
    return torch.stack([*found, *(decoder.step(torch.tensor([token]), cache)[0] for token in tokens)])


def both_logits(model: VisionLanguageModel, inputs: dict[str, Tensor], tokens: list[int]) -> tuple[Tensor, Tensor]:
    decoder = make_decoder(model)
    assert isinstance(decoder, LeanDecoder)
    return logits(decoder, inputs, tokens), logits(ModuleDecoder(model), inputs, tokens)


@pytest.mark.parametrize("photos", [0, 1, 2])
def test_greedy_tokens_equal_generate(variant: str, photos: int, tiny: Build, prompt: Prompt) -> None:
    model = tiny(variant)
    inputs = prompt(model, photos=photos)
    expected = plain(model, inputs)
    decoder = make_decoder(model)
    assert isinstance(decoder, LeanDecoder)
    assert greedy(decoder, inputs) == expected
    assert len(expected) == STEPS


def test_logits_equal_the_modules(variant: str, tiny: Build, prompt: Prompt) -> None:
    model = tiny(variant)
    ours, theirs = both_logits(model, prompt(model), [5, 17, 5, 40, 41, 42])
    assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_logits_in_bfloat16_are_close(variant: str, tiny: Build, prompt: Prompt) -> None:
    model = tiny(variant, torch.bfloat16)
    if model.experts is not None:
        pytest.skip("a rounded logit may choose another expert")
    inputs, tokens = prompt(model, photos=0), [5, 17, 40]
    ours, theirs = both_logits(model, inputs, tokens)
    exact = logits(ModuleDecoder(model.float()), inputs, tokens)
    # Both round; ours, with float32 between the layers, must not be the worse one by more than chance.
    error = [float((found.float() - exact).norm() / exact.norm()) for found in (ours, theirs)]
    assert error[0] < 0.02
    assert error[0] < 1.5 * error[1]


@pytest.mark.usefixtures("exact_float32")
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("chosen", ["llama", "phi", "experts", "experts beside a residual"])
def test_small_weights(chosen: str, bits: int, tiny: Build, prompt: Prompt) -> None:
    model = quantize_model(tiny(chosen), bits)
    inputs = prompt(model)
    expected = plain(model, inputs)
    ours, theirs = both_logits(model, inputs, expected[:4])
    assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert greedy(make_decoder(model), inputs) == expected


@pytest.mark.parametrize("bits", [8, 4])
def test_small_weights_are_saved_as_they_were(bits: int, tiny: Build, prompt: Prompt, tmp_path: Path) -> None:
    model = quantize_model(tiny("llama"), bits)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_decoder(model)
    model.save_pretrained(tmp_path)
    after = VisionLanguageModel.from_pretrained(tmp_path).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name].float(), tensor.float()) for name, tensor in before.items())


def test_the_model_still_computes_the_same_afterwards(variant: str, tiny: Build, prompt: Prompt, tmp_path: Path) -> None:
    model = tiny(variant)
    inputs = prompt(model)
    with torch.inference_mode():
        before = model(**inputs).logits
        greedy(make_decoder(model), inputs)
        assert_close(model(**inputs).logits, before)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        assert_close(VisionLanguageModel.from_pretrained(tmp_path)(**inputs).logits, before)


@pytest.mark.parametrize("chosen", ["llama", "phi, all norms"])
def test_lora_beside_the_weights(chosen: str, tiny: Build, prompt: Prompt, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = tiny(chosen)
    inputs = prompt(model)
    without = plain(model, inputs)
    names = [name for name, _ in model.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj"))]
    factors = {}
    for name in names:
        layer: Any = model.get_submodule(name)
        factors[f"{name}.lora_A.weight"] = torch.randn(4, layer.in_features)
        factors[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, 4)
    write_lora(tmp_path, factors, alpha=4, dropout=0.0)
    assert attach_lora(model, tmp_path)
    ours, theirs = both_logits(model, inputs, [5, 17])
    assert_close(ours, theirs, atol=5e-5, rtol=1e-4)
    assert greedy(make_decoder(model), inputs) == plain(model, inputs) != without


def test_what_the_plan_does_not_know_runs_on_the_modules(tiny: Build, prompt: Prompt) -> None:
    model = tiny("llama")
    inputs, layer = prompt(model), model.language_model.base_model.layers[1]
    layer.register_forward_hook(lambda module, given, output: output.roll(1, -1))
    decoder = make_decoder(model)
    assert isinstance(decoder, ModuleDecoder)
    assert greedy(decoder, inputs) == plain(model, inputs) != plain(tiny("llama"), inputs)


@pytest.mark.parametrize("place", ["self_attn.q_proj", "self_attn", "mlp", "mlp.down_proj"])
def test_hooks_anywhere_in_a_layer_are_noticed(place: str, tiny: Build) -> None:
    model = tiny("llama")
    model.language_model.base_model.layers[1].get_submodule(place).register_forward_hook(lambda module, given, output: None)
    assert isinstance(make_decoder(model), ModuleDecoder)


def test_changing_rotary_embeddings_run_on_the_modules(tiny: Build) -> None:
    model = tiny("llama")
    model.language_model.base_model.rotary_emb.rope_type = "dynamic"
    assert isinstance(make_decoder(model), ModuleDecoder)
