"""The expert layer against DeepSpeed's, and how its routing is handed to the caller."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig
from transformers.activations import ACT2FN
from transformers.models.phi.modeling_phi import PhiMLP

from salticid.errors import ConfigurationError
from salticid.models.moe import ExpertsConfig, ExpertsLayer, FeedForwardShape, collect_routing, experts_loss, upcycle_language_model

GOLDEN = Path(__file__).parents[2] / "goldens" / "moe_deepspeed_layer.safetensors"
PHI_NAMES = {"up_proj": "fc1.weight", "up_proj_bias": "fc1.bias", "down_proj": "fc2.weight", "down_proj_bias": "fc2.bias"}


def recorded_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    with safe_open(GOLDEN, "pt") as file:
        yield from json.loads(file.metadata()["cases"]).items()


def deepspeed_layer(case: dict[str, Any], draws: bool, weights: dict[str, Tensor]) -> ExpertsLayer:
    """DeepSpeed's layer around Phi's feed-forward network, with recorded weights."""
    config = ExpertsConfig(
        routing="deepspeed",
        top_k=case["k"],
        capacity_factor=case["capacity_factor"],
        eval_capacity_factor=case["eval_capacity_factor"],
        min_capacity=case["min_capacity"],
        residual=case["residual"],
        random_token_selection=draws,
    )
    host = PhiConfig(hidden_size=16, intermediate_size=24, hidden_act="gelu_new", experts_implementation="eager")
    dense = PhiMLP(host)
    shape = FeedForwardShape(width=16, ffn=24, gated=False, bias=True, activation=dense.activation_fn)
    layer = ExpertsLayer(config, host, shape, 4, dense if case["residual"] else None)
    state = {"router.wg.weight": weights["wg.weight"]}
    for ours, theirs in PHI_NAMES.items():
        state[f"experts.{ours}"] = torch.stack([weights[f"experts.{expert}.{theirs}"] for expert in range(4)])
    if case["residual"]:
        state |= {f"residual_mlp.{name[4:]}": tensor for name, tensor in weights.items() if name.startswith("mlp.")}
        state |= {name: tensor for name, tensor in weights.items() if name.startswith("coefficient.")}
    layer.load_state_dict(state)
    return layer.train(case["train"])


@pytest.mark.parametrize(("tag", "case"), list(recorded_cases()))
def test_layer_equals_deepspeed(tag: str, case: dict[str, Any]) -> None:
    golden = load_file(GOLDEN)
    weights = {name.removeprefix("weights."): tensor for name, tensor in golden.items() if name.startswith("weights.")}
    recorded = {name.removeprefix(f"{tag}."): tensor for name, tensor in golden.items() if name.startswith(f"{tag}.")}
    layer = deepspeed_layer(case, "rts_uniform" in recorded, weights)
    if tag == "k1_train_cf1_norts":
        check_counts_of_tied_claims(layer, golden["input"], recorded)
    else:
        check_layer(layer, golden["input"], golden["grad_output"], recorded, case["capacity"])


def check_layer(layer: ExpertsLayer, x: Tensor, grad_output: Tensor, recorded: dict[str, Tensor], capacity: int) -> None:
    x = x.clone().requires_grad_()
    out = layer(x, gumbel_SE=recorded.get("gumbel"), uniform_SE=recorded.get("rts_uniform"))
    (routing,) = collect_routing(layer)
    assert routing.capacity == capacity
    assert routing.first_choices_E.tolist() == recorded["exp_counts"].tolist()
    combine_SE = torch.zeros_like(routing.logits_SE).scatter_(1, routing.experts_SK, routing.weights_SK.detach())
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(combine_SE, recorded["combine_SE"], **close)
    torch.testing.assert_close(routing.aux_loss, recorded["l_aux"].squeeze(), **close)
    torch.testing.assert_close(out, recorded["output"], **close)

    ((out * grad_output).sum() + routing.aux_loss).backward()
    close = {"rtol": 1e-5, "atol": 1e-6}  # gradients are sums over all tokens
    assert x.grad is not None
    torch.testing.assert_close(x.grad, recorded["grad_input"], **close)
    # The router's reach 4.3, of terms that cancel: with AVX-512 but no bf16 instructions float32 sums were seen to differ by 1.9e-6.
    torch.testing.assert_close(layer.router.wg.weight.grad, recorded["grad_wg"], rtol=1e-5, atol=3e-6)
    for ours, theirs in PHI_NAMES.items():
        if f"grad.0.{theirs}" in recorded:
            expected = torch.stack([recorded[f"grad.{expert}.{theirs}"] for expert in range(4)])
            torch.testing.assert_close(layer.experts.get_parameter(ours).grad, expected, **close)


def check_counts_of_tied_claims(layer: ExpertsLayer, x: Tensor, recorded: dict[str, Tensor]) -> None:
    # Which of the tied tokens a full expert keeps is up to torch's topk, and may differ between builds; how many is not.
    layer(x)
    (routing,) = collect_routing(layer)
    kept_E = routing.chosen_E - routing.dropped_E
    assert kept_E.tolist() == (recorded["combine_SE"] > 0).sum(0).tolist()
    torch.testing.assert_close(routing.aux_loss, recorded["l_aux"].squeeze())


def test_goldens_cover_what_they_should() -> None:
    tags = dict(recorded_cases())
    golden = load_file(GOLDEN)
    assert {case["k"] for case in tags.values()} == {1, 2}
    assert any(case["residual"] for case in tags.values())
    assert any(f"{tag}.gumbel" in golden for tag in tags)
    assert any(f"{tag}.rts_uniform" in golden for tag in tags)
    assert sum((golden[f"{tag}.combine_SE"].sum(1) == 0).any().item() for tag in tags) >= 3  # tokens without any expert


def test_every_recorded_layer(shared: Path) -> None:
    folder = shared / "fixtures" / "deepspeed_moe_layer"
    tensors, meta = load_file(folder / "layer.safetensors"), json.loads((folder / "meta.json").read_text())
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith("weights."):
            ours = name.replace("deepspeed_moe.experts.deepspeed_experts", "experts").replace("deepspeed_moe.gate.", "")
            weights[ours.removeprefix("weights.")] = tensor
    checked = 0
    for tag, case in meta.items():
        if "capacity" not in case:
            continue
        recorded = {name.removeprefix(f"{tag}."): tensor for name, tensor in tensors.items() if name.startswith(f"{tag}.")}
        recorded["combine_SE"] = recorded.pop("combine_sec").sum(2)
        layer = deepspeed_layer(case, case.get("use_rts", True) and case["k"] == 1, weights)
        check_layer(layer, tensors["input"], tensors["grad_output"], recorded, case["capacity"])
        checked += 1
    assert checked == 11


@pytest.mark.parametrize("family", ["phi", "stablelm", "qwen", "mistral"])
def test_every_recorded_expert_layer_of_a_language_model(shared: Path, family: str) -> None:
    folder = shared / "fixtures" / f"moellava_{family}"
    state = torch.load(folder / "moe" / "pytorch_model.bin", weights_only=True)
    checked = 0
    for path in sorted(folder.glob("moe_outputs_*.safetensors")):
        recorded = load_file(path)
        for name in sorted(recorded):
            case, _, rest = name.partition(".moe.")
            layer_index, _, kind = rest.partition(".")
            if kind != "gate_input":
                continue
            layer = published_layer(state, family, int(layer_index), case)
            if (skewed := recorded.get(f"skew.wg.{layer_index}")) is not None:
                layer.router.wg.weight.data = skewed
            x, expected = recorded[name], recorded[f"{case}.moe.{layer_index}.output"]
            out = layer(x.view_as(expected), gumbel_SE=recorded.get(f"{case}.moe.{layer_index}.gumbel"))
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
            (routing,) = collect_routing(layer)
            torch.testing.assert_close(routing.logits_SE, recorded[f"{case}.moe.{layer_index}.gate_logits"], rtol=1e-5, atol=1e-6)
            checked += 1
    assert checked >= 2


# Names of the linear layers that lead up (gate first) and of the one that leads down.
PUBLISHED_NAMES = {
    "phi": (("fc1",), "fc2"),
    "stablelm": (("gate_proj", "up_proj"), "down_proj"),
    "qwen": (("w2", "w1"), "c_proj"),
    "mistral": (("gate_proj", "up_proj"), "down_proj"),
}


def published_layer(state: dict[str, Tensor], family: str, index: int, case: str) -> ExpertsLayer:
    """One expert layer of a checkpoint in MoE-LLaVA's layout."""
    ups, down = PUBLISHED_NAMES[family]
    root = f"transformer.h.{index}" if family == "qwen" else f"model.layers.{index}"
    root = f"{root}.mlp.deepspeed_moe"

    def stacked(kind: str, names: tuple[str, ...]) -> Tensor:
        experts = [[state[f"{root}.experts.deepspeed_experts.{expert}.{name}.{kind}"] for name in names] for expert in range(4)]
        return torch.stack([torch.cat(parts) for parts in experts])

    up_name = "up_proj" if family == "phi" else "gate_up_proj"
    weights = {"router.wg.weight": state[f"{root}.gate.wg.weight"]}
    weights |= {f"experts.{up_name}": stacked("weight", ups), "experts.down_proj": stacked("weight", (down,))}
    if family == "phi":
        weights |= {"experts.up_proj_bias": stacked("bias", ups), "experts.down_proj_bias": stacked("bias", (down,))}

    factors = {name: float(value) for name, value in re.findall(r"(e?cf)([0-9.]+)", case)}
    config = ExpertsConfig(routing="deepspeed", capacity_factor=factors.get("cf", 1.5), eval_capacity_factor=factors.get("ecf", 2.0))
    activation = ACT2FN["gelu_new" if family == "phi" else "silu"]
    shape = FeedForwardShape(width=64, ffn=160, gated=family != "phi", bias=family == "phi", activation=activation)
    layer = ExpertsLayer(config, LlamaConfig(experts_implementation="eager"), shape, 4)
    layer.load_state_dict(weights)
    return layer.train(case.startswith("train"))


def tiny_llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        experts_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    upcycle_language_model(model, ExpertsConfig(**options), noise=0.5)
    return model


def test_routing_is_collected_once_in_layer_order() -> None:
    model = tiny_llama(layers=(0, 2), experts=(3, 5))
    assert collect_routing(model) == ()
    model(input_ids=torch.arange(8)[None])
    routings = collect_routing(model)
    assert [tuple(routing.logits_SE.shape) for routing in routings] == [(8, 3), (8, 5)]
    assert collect_routing(model) == ()


def checkpoint_layers(model: LlamaForCausalLM, use_reentrant: bool) -> None:
    # What transformers' public switch does; it is renamed between the versions that we support.
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=partial(checkpoint, use_reentrant=use_reentrant))


def training_step(model: LlamaForCausalLM) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.arange(12).view(2, 6)
    loss = model(input_ids=ids, labels=ids).loss + experts_loss(collect_routing(model), ExpertsConfig(aux_loss_coef=0.5, z_loss_coef=0.1))
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


@pytest.mark.parametrize("options", [{}, {"routing": "deepspeed", "second_choice_noise": "gumbel", "capacity_factor": 0.5}])
def test_gradient_checkpointing_changes_nothing(options: dict[str, Any]) -> None:
    model = tiny_llama(layers="all", **options).train()
    torch.manual_seed(1)
    loss, gradients = training_step(model)
    assert gradients["model.layers.0.mlp.router.wg.weight"].abs().sum() > 0
    checkpoint_layers(model, use_reentrant=False)
    torch.manual_seed(1)
    again, gradients_again = training_step(model)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(gradients_again, gradients)
    assert collect_routing(model) == ()  # the recomputation left nothing behind


def test_reentrant_checkpointing_is_refused() -> None:
    model = tiny_llama().train()
    checkpoint_layers(model, use_reentrant=True)
    model.enable_input_require_grads()
    model(input_ids=torch.arange(8)[None])
    with pytest.raises(ConfigurationError, match="use_reentrant=False"):
        collect_routing(model)


def test_a_layer_with_a_recorded_graph_can_be_copied() -> None:
    model = tiny_llama()
    model(input_ids=torch.arange(8)[None])
    twin = copy.deepcopy(model)
    assert collect_routing(twin) == ()
    assert len(collect_routing(model)) == 2


def test_routing_is_not_saved() -> None:
    model = tiny_llama()
    names = set(model.state_dict())
    model(input_ids=torch.arange(8)[None])
    assert set(model.state_dict()) == names
    assert {name.partition("mlp.")[2] for name in names if "layers.0.mlp" in name} == {
        "router.wg.weight",
        "experts.gate_up_proj",
        "experts.down_proj",
    }


@pytest.mark.parametrize("option", ["residual", "shared_expert"])
def test_a_dense_network_beside_the_experts_must_be_given(option: str) -> None:
    shape = FeedForwardShape(width=4, ffn=8, gated=True, bias=False, activation=nn.SiLU())
    with pytest.raises(ConfigurationError, match="pass it as `dense`"):
        ExpertsLayer(ExpertsConfig(**{option: True}), PhiConfig(), shape, 4)


def test_compiles_in_one_graph_with_grouped_products() -> None:
    model = tiny_llama(layers="all").eval()
    layer = model.model.layers[0].mlp
    model.config._experts_implementation = "grouped_mm"
    x = torch.randn(1, 5, 16)
    with torch.no_grad():
        expected = layer(x)
        (routing,) = collect_routing(layer)
        out = torch.compile(layer, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(out, expected)
    (compiled,) = collect_routing(layer)
    torch.testing.assert_close(compiled.weights_SK, routing.weights_SK)
