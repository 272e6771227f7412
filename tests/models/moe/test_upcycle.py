"""Dense language models become sparse ones that compute the same, for every backbone."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from salticid.errors import ConfigurationError
from salticid.models.moe import ExpertsConfig, ExpertsLayer, collect_routing, upcycle_language_model

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.4,  # large enough for the feed-forward networks to matter
}
BACKBONES: dict[str, PreTrainedConfig] = {
    "phi": PhiConfig(**SIZES),
    "stablelm": StableLmConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "llama": LlamaConfig(**SIZES),
    "llama with biases": LlamaConfig(**SIZES, mlp_bias=True),
    "gemma": GemmaConfig(**SIZES),
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def make(backbone: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(BACKBONES[backbone]))
    for name, parameter in model.named_parameters():  # biases start at zero, where a lost one would not show
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("backbone", list(BACKBONES))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1, "layers": "all", "experts": [2, 3, 4, 5]},
        {"top_k": 3, "layers": "second-half"},
        {"routing": "deepspeed", "layers": "first-half", "second_choice_noise": "gumbel"},
        {"residual": True},
        {"shared_expert": True},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_outputs_equal_the_dense_model(backbone: str, options: dict[str, Any]) -> None:
    model = make(backbone)
    expected = logits(model)
    config = ExpertsConfig.from_dict(options)
    chosen = upcycle_language_model(model, config)
    assert [isinstance(decoder.mlp, ExpertsLayer) for decoder in model.base_model.layers] == [index in chosen for index in range(4)]
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert len(collect_routing(model)) == len(chosen)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_the_feed_forward_networks_matter(backbone: str) -> None:
    # Equal outputs prove nothing for networks that add nothing.
    model = make(backbone)
    expected = logits(model)
    upcycle_language_model(model, ExpertsConfig())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.mul_(0.9)
    assert (logits(model) - expected).abs().max() > 0.05


@pytest.mark.parametrize("backbone", ["phi", "llama"])
def test_bfloat16_outputs_are_equal_bit_for_bit(backbone: str) -> None:
    # Weights that sum to one in float32 cannot move a sum by a bit of bfloat16.
    model = make(backbone).bfloat16()
    expected = logits(model)
    upcycle_language_model(model, ExpertsConfig())
    assert torch.equal(logits(model), expected)
    assert model.base_model.layers[0].mlp.router.wg.weight.dtype == torch.float32


def test_works_without_the_head() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(BACKBONES["qwen2"])).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS).last_hidden_state
        assert upcycle_language_model(model, ExpertsConfig()) == (0, 2)
        torch.testing.assert_close(model(input_ids=IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", ["phi", "qwen3"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_generates_the_same_tokens(backbone: str, implementation: str) -> None:
    model = make(backbone)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    expected = model.generate(IDS, **options)
    upcycle_language_model(model, ExpertsConfig())
    model.config._experts_implementation = implementation
    assert torch.equal(model.generate(IDS, **options), expected)


def test_implementation_follows_the_host_configuration() -> None:
    host = PreTrainedConfig(experts_implementation="unheard of")
    model = make("llama")
    upcycle_language_model(model, ExpertsConfig(), host_config=host)
    with pytest.raises(KeyError, match="unheard of"):
        logits(model)
    host._experts_implementation = "eager"
    logits(model)


def test_a_training_step_moves_experts_and_router_apart() -> None:
    model = make("phi").train()
    upcycle_language_model(model, ExpertsConfig(top_k=2))
    model(input_ids=IDS, labels=IDS).loss.backward(retain_graph=True)
    layer = model.base_model.layers[0].mlp
    gradients = layer.experts.up_proj.grad
    assert gradients is not None
    assert not torch.equal(gradients[0], gradients[1])
    # Equal experts give the router nothing to prefer, but for the auxiliary loss.
    assert layer.router.wg.weight.grad.abs().max() < 1e-5
    (routing, _) = collect_routing(model)
    model.zero_grad()
    routing.aux_loss.backward()
    assert layer.router.wg.weight.grad.abs().max() > 1e-5


def test_frozen_networks_give_frozen_experts_and_a_router_that_trains() -> None:
    model = make("llama").requires_grad_(False)
    upcycle_language_model(model, ExpertsConfig())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"model.layers.{index}.mlp.router.wg.weight" for index in (0, 2)}


def test_dense_networks_are_let_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    dense = [weakref.ref(decoder.mlp.down_proj.weight) for decoder in model.base_model.layers]
    alive: list[int] = []
    init = ExpertsLayer.__init__

    def counting(self: ExpertsLayer, *args: Any) -> None:
        alive.append(sum(reference() is not None for reference in dense))
        init(self, *args)

    monkeypatch.setattr(ExpertsLayer, "__init__", counting)
    upcycle_language_model(model, ExpertsConfig(layers="all"))
    assert alive == [4, 3, 2, 1]
    assert not any(reference() is not None for reference in dense)


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"shared_expert": True}])
@pytest.mark.parametrize("backbone", ["phi", "llama"])
def test_meta_model_takes_the_weights_of_a_real_one(backbone: str, options: dict[str, Any]) -> None:
    config = ExpertsConfig(**options)
    model = make(backbone)
    upcycle_language_model(model, config, noise=0.1)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(BACKBONES[backbone]))
        upcycle_language_model(empty, config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    twin = make(backbone, seed=1)
    upcycle_language_model(twin, config)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(twin), logits(model))
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in empty.state_dict().items()}
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("backbone", ["phi", "llama", "llama with biases"])
def test_partial_reinitialisation_redraws_the_same_neurons_of_all_matrices(backbone: str) -> None:
    model = make(backbone)
    upcycle_language_model(model, ExpertsConfig(layers=(1,)))
    copies = {name: parameter.clone() for name, parameter in model.base_model.layers[1].mlp.experts.named_parameters()}
    model = make(backbone)
    upcycle_language_model(model, ExpertsConfig(layers=(1,)), reinitialise=0.5, generator=torch.Generator().manual_seed(0))
    experts = model.base_model.layers[1].mlp.experts
    moved = []
    for expert in range(4):
        changed = {name: parameter[expert] != copies[name][expert] for name, parameter in experts.named_parameters()}
        neurons = changed["down_proj"].all(0)
        assert neurons.sum() == 12  # half of 24
        assert torch.equal(changed["down_proj"].any(0), neurons)
        for rows in changed[experts.up_name].split(24):
            assert torch.equal(rows.all(1), neurons)
            assert torch.equal(rows.any(1), neurons)
        if experts.has_bias:
            assert all(torch.equal(part, neurons) for part in changed[f"{experts.up_name}_bias"].split(24))
            assert not changed["down_proj_bias"].any()
        moved.append(neurons)
    assert not torch.equal(moved[0], moved[1])  # every expert redraws neurons of its own


def test_redrawn_weights_keep_mean_and_deviation() -> None:
    config = LlamaConfig(**SIZES | {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 1})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    mlp = model.base_model.layers[0].mlp
    with torch.no_grad():
        mlp.gate_proj.weight.normal_(0.3, 0.1)
        mlp.up_proj.weight.normal_(-0.2, 0.5)
    upcycle_language_model(model, ExpertsConfig(), reinitialise=1.0, generator=torch.Generator().manual_seed(0))
    gate, up = model.base_model.layers[0].mlp.experts.gate_up_proj[2].chunk(2)
    assert gate.mean().item() == pytest.approx(0.3, abs=0.01)
    assert gate.std().item() == pytest.approx(0.1, rel=0.05)
    assert up.mean().item() == pytest.approx(-0.2, abs=0.02)
    assert up.std().item() == pytest.approx(0.5, rel=0.05)


def test_noise_is_relative_and_differs_between_experts() -> None:
    model = make("qwen2")
    dense = model.base_model.layers[0].mlp.down_proj.weight.detach().clone()
    upcycle_language_model(model, ExpertsConfig(), noise=0.1)
    added = model.base_model.layers[0].mlp.experts.down_proj - dense
    assert added.std().item() == pytest.approx(0.1 * dense.std().item(), rel=0.15)
    assert not torch.equal(added[0], added[1])


def test_a_generator_makes_it_repeatable() -> None:
    states = []
    for _ in range(2):
        model = make("phi")
        torch.manual_seed(len(states))
        generator = torch.Generator().manual_seed(7)
        upcycle_language_model(model, ExpertsConfig(), noise=0.1, reinitialise=0.3, generator=generator)
        states.append(model.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "arguments", "complaint"),
    [
        ({"layers": (4,)}, {}, "Layer 4 cannot get experts"),
        ({"experts": (4, 4, 4)}, {}, "3 numbers of experts"),
        ({}, {"reinitialise": 1.5}, "between 0 and 1"),
        ({}, {"noise": -0.1}, "at least 0"),
    ],
)
def test_bad_requests_leave_the_model_as_it_was(options: dict[str, Any], arguments: dict[str, float], complaint: str) -> None:
    model = make("llama")
    with pytest.raises(ConfigurationError, match=complaint):
        upcycle_language_model(model, ExpertsConfig(**options), **arguments)
    assert not any(isinstance(module, ExpertsLayer) for module in model.modules())


def test_a_model_with_experts_is_refused() -> None:
    model = make("llama")
    upcycle_language_model(model, ExpertsConfig(layers=(3,)))
    with pytest.raises(ConfigurationError, match="has experts already"):
        upcycle_language_model(model, ExpertsConfig())


def test_a_model_that_is_no_language_model_is_refused() -> None:
    tower = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    )
    with pytest.raises(ConfigurationError, match="no decoder layers"):
        upcycle_language_model(tower, ExpertsConfig())


def test_an_unknown_feed_forward_network_is_refused() -> None:
    model = make("llama")
    model.base_model.layers[2].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(ConfigurationError, match=r"plain linear layers \['down_proj', 'gate_proj'\]"):
        upcycle_language_model(model, ExpertsConfig())
    assert not any(isinstance(module, ExpertsLayer) for module in model.modules())
