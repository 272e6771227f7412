"""Extra normalisations that start from what a language model did without them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from salticid.models.fit_norms import LENGTH, TEXTS, fit_layer_norm, fit_norms, fit_rms_norm, write_texts
from salticid.models.norms import HeadLayerNorm, NormsConfig, RootMeanSquareLayerNorm, add_norms

ALL = NormsConfig(query=True, key=True, attention_output=True)


def decoder(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(name, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # so that attention has something to say
    return model


def with_norms(plain: PreTrainedModel, norms: NormsConfig = ALL) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(plain.config).eval()
    add_norms(model, norms)
    model.load_state_dict(plain.state_dict(), strict=False)
    return model


@torch.no_grad()
def distance(model: PreTrainedModel, plain: PreTrainedModel, ids_BT: Tensor) -> float:
    """Kullback-Leibler divergence of the words that follow, the plain model's first."""
    own, wanted = model(input_ids=ids_BT).logits.log_softmax(-1), plain(input_ids=ids_BT).logits.log_softmax(-1)
    return float(F.kl_div(own, wanted, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_fitted_norms_are_nearer_to_the_plain_model_than_identities_on_text_they_were_not_fitted_to(name: str) -> None:
    plain = decoder(name)
    identities, fitted = with_norms(plain), with_norms(plain)
    fit_norms(fitted, plain, seed=0)
    unseen = write_texts(plain, seed=1)
    assert distance(fitted, plain, unseen) < 0.5 * distance(identities, plain, unseen)
    assert all(torch.equal(weight, fitted.state_dict()[key]) for key, weight in plain.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_norms_with_room_below_their_epsilon_hardly_change_what_the_layers_give(name: str) -> None:
    plain = decoder(name)
    fitted, roomy = with_norms(plain), with_norms(plain, replace(ALL, head_eps=1e6, output_eps=1e6))
    fit_norms(fitted, plain, seed=0)
    fit_norms(roomy, plain, seed=0)
    unseen = write_texts(plain, seed=1)
    assert distance(roomy, plain, unseen) < 0.5 * distance(fitted, plain, unseen)


def test_norms_can_be_fitted_singly() -> None:
    plain = decoder("llama")
    model = AutoModelForCausalLM.from_config(plain.config)
    add_norms(model, NormsConfig(attention_output=True))
    fit_norms(model, plain)
    weight = model.base_model.layers[1].self_attn.output_layernorm.weight
    assert not torch.allclose(weight, torch.ones_like(weight), atol=0.05)


def test_the_text_is_the_same_for_the_same_seed_and_leaves_the_generator_alone() -> None:
    plain = decoder("llama")
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = write_texts(plain, seed=3)
    torch.testing.assert_close(torch.rand(1), wanted)
    assert first.shape == (TEXTS, LENGTH + 1)
    assert torch.equal(first, write_texts(plain, seed=3))
    assert not torch.equal(first, write_texts(plain, seed=4))


def test_a_layer_norm_repeats_rows_that_one_can_repeat() -> None:
    torch.manual_seed(0)
    source, norm = HeadLayerNorm(8), HeadLayerNorm(8)
    with torch.no_grad():
        source.weight.normal_(), source.bias.normal_()
    rows = source(torch.randn(400, 8))
    norm_of_rows = F.layer_norm(rows, (8,))
    fit_layer_norm(norm, rows)
    # the least squares solution: its error is orthogonal to what it can change
    error = norm(rows) - rows
    torch.testing.assert_close(error.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close((error * norm_of_rows).mean(0), torch.zeros(8), atol=1e-4, rtol=0)


def test_an_rms_norm_finds_the_scale_of_rows_of_one_length() -> None:
    torch.manual_seed(0)
    norm = RootMeanSquareLayerNorm(8, eps=1e-6)
    fit_rms_norm(norm, 0.3 * F.rms_norm(torch.randn(200, 8), (8,)))
    torch.testing.assert_close(norm.weight, torch.full((8,), 0.3), atol=1e-4, rtol=0)
