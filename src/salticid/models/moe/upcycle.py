"""A dense language model becomes a sparse one: its feed-forward networks are copied into experts (sparse upcycling, arXiv 2212.05055)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from salticid.errors import ConfigurationError
from salticid.models.moe.config import ExpertsConfig
from salticid.models.moe.experts import Experts, FeedForwardShape
from salticid.models.moe.layer import ExpertsLayer

# Feed-forward networks by the names of their linear layers: those that lead up (gate first), the one that leads down, the activation.
# Qwen2, Qwen3, Mistral, Llama, StableLM and Gemma share the first.
FEED_FORWARDS: dict[frozenset[str], tuple[tuple[str, ...], str, str]] = {
    frozenset({"gate_proj", "up_proj", "down_proj"}): (("gate_proj", "up_proj"), "down_proj", "act_fn"),
    frozenset({"fc1", "fc2"}): (("fc1",), "fc2", "activation_fn"),
}


@dataclass(frozen=True)
class DenseFeedForward:
    """The parts of a host's feed-forward network, whatever it calls them."""

    ups: tuple[nn.Linear, ...]  # gate and up, or up alone
    down: nn.Linear
    activation: nn.Module

    @classmethod
    def read(cls, mlp: nn.Module) -> DenseFeedForward:
        """Raises ConfigurationError for a network whose linear layers have other names, or are no plain linear layers."""
        linears = {name: child for name, child in mlp.named_children() if type(child) is nn.Linear}
        if frozenset(linears) not in FEED_FORWARDS:
            known = [sorted(names) for names in FEED_FORWARDS]
            raise ConfigurationError(
                f"Cannot copy {type(mlp).__name__} into experts: it has plain linear layers {sorted(linears)}, known are {known}."
            )
        ups, down, activation = FEED_FORWARDS[frozenset(linears)]
        parts = cls(tuple(linears[name] for name in ups), linears[down], getattr(mlp, activation))
        if len({linear.bias is None for linear in (*parts.ups, parts.down)}) != 1:
            raise ConfigurationError(f"Cannot copy {type(mlp).__name__} into experts: only some of its linear layers have a bias.")
        return parts

    @property
    def shape(self) -> FeedForwardShape:
        """What every expert copied from this network has in common with it."""
        bias = self.down.bias is not None
        return FeedForwardShape(self.down.out_features, self.down.in_features, len(self.ups) == 2, bias, self.activation)


@torch.no_grad()
def upcycle_language_model(
    model: PreTrainedModel,
    config: ExpertsConfig,
    *,
    host_config: PreTrainedConfig | None = None,
    reinitialise: float = 0.0,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[int, ...]:
    """Replaces the `mlp` of the chosen decoder layers, in place, by experts that are copies of it, behind a new router.

    Until it is trained the model computes what it did before, because the weights of a token's experts sum to one: with routing
    "dropless" and `normalise`, and with DeepSpeed's top_k 2 as long as nothing is dropped. `shared_expert` starts as one half of the
    dense network and the experts as the other half. `reinitialise` and `noise` give that up on purpose, so that experts differ.

    Layers are replaced one after another and each dense network is let go, so the peak is the finished model plus one layer. On the
    meta device only shapes are made, for weights to be loaded into.

    Args:
        model: a transformers language model, with or without its head.
        config: which layers, how many experts, which routing.
        host_config: whose `_experts_implementation` the experts obey; the language model's own unless a larger model holds it.
        reinitialise: fraction of each expert's hidden neurons that is redrawn from the mean and deviation of the weights they
            replace (drop-upcycling, arXiv 2502.19261, which recommends 0.5); every expert redraws neurons of its own.
        noise: deviation of Gaussian noise added to each expert's weights, relative to the deviation of the dense weight (the
            noise upcycling that drop-upcycling is compared with).
        generator: source of the new routers and of both options; torch's global one by default.

    Returns:
        The indices of the layers that hold experts now.

    Raises:
        ConfigurationError: the model has no decoder layers, has experts already, an unknown feed-forward network, or fewer layers
            than asked for; or a fraction out of range.
    """
    if not 0 <= reinitialise <= 1 or noise < 0:
        raise ConfigurationError(f"reinitialise {reinitialise} must lie between 0 and 1, and noise {noise} must be at least 0.")
    decoders = _decoder_layers(model)
    placement = config.experts_per_layer(len(decoders))
    for index in placement:  # all are checked before any is replaced
        DenseFeedForward.read(decoders[index].get_submodule("mlp"))
    for index, experts in placement.items():
        mlp = decoders[index].get_submodule("mlp")
        dense = DenseFeedForward.read(mlp)
        layer = _upcycle_layer(mlp, dense, config, model.config if host_config is None else host_config, experts, generator)
        _diversify(layer.experts, dense.shape, reinitialise, noise, generator)
        decoders[index].mlp = layer
    return tuple(placement)


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    decoders = getattr(model.base_model, "layers", None)
    if not isinstance(decoders, nn.ModuleList) or not all(hasattr(decoder, "mlp") for decoder in decoders):
        raise ConfigurationError(f"{type(model).__name__} has no decoder layers with an `mlp` each; experts need a language model.")
    if any(isinstance(decoder.mlp, ExpertsLayer) for decoder in decoders):
        raise ConfigurationError(f"{type(model).__name__} has experts already; start from the dense model.")
    return decoders


def _upcycle_layer(
    mlp: nn.Module,
    dense: DenseFeedForward,
    config: ExpertsConfig,
    host_config: PreTrainedConfig,
    experts: int,
    generator: torch.Generator | None,
) -> ExpertsLayer:
    weight = dense.down.weight
    layer = ExpertsLayer(config, host_config, dense.shape, experts, mlp, weight.device, weight.dtype).train(mlp.training)
    layer.experts.requires_grad_(weight.requires_grad)
    if config.shared_expert:  # a power of two: halving and adding again is exact
        for parameter in dense.down.parameters():
            parameter.mul_(0.5)
    _copy_dense(layer.experts, dense)
    if generator is not None:
        nn.init.kaiming_uniform_(layer.router.wg.weight, a=math.sqrt(5), generator=generator)
    return layer


def _copy_dense(experts: Experts, dense: DenseFeedForward) -> None:
    for name, linears in ((experts.up_name, dense.ups), ("down_proj", (dense.down,))):
        for suffix, kind in (("", "weight"), ("_bias", "bias")):
            stacked_E = getattr(experts, f"{name}{suffix}", None)
            if stacked_E is not None:
                for part_E, linear in zip(stacked_E.chunk(len(linears), dim=1), linears, strict=True):
                    part_E.copy_(getattr(linear, kind))


def _diversify(experts: Experts, shape: FeedForwardShape, reinitialise: float, noise: float, generator: torch.Generator | None) -> None:
    up, down = experts.get_parameter(experts.up_name), experts.get_parameter("down_proj")
    matrices: list[tuple[Tensor, int]] = [(up, 0), (down, 1)]  # with the dimension along which hidden neurons lie
    if noise:
        for weight, _ in matrices:
            deviation = weight[0].float().std()  # all experts are equal here
            for expert in weight:
                expert.add_(_normal(expert, generator) * (noise * deviation))
    redrawn = int(shape.ffn * reinitialise)
    if not redrawn:
        return
    if shape.bias:
        matrices.append((getattr(experts, f"{experts.up_name}_bias"), 0))
    for expert in range(experts.num_experts):
        device = down.device if generator is None else generator.device
        neurons = torch.randperm(shape.ffn, generator=generator, device=device)[:redrawn].to(down.device)
        for weight, dim in matrices:
            for part in weight[expert].split(shape.ffn, dim):  # gate and up apart, each with its own mean and deviation
                _redraw(part, neurons, dim, generator)


def _redraw(part: Tensor, neurons: Tensor, dim: int, generator: torch.Generator | None) -> None:
    old = part.index_select(dim, neurons)
    fresh = _normal(old, generator) * old.float().std(correction=0) + old.float().mean()
    part.index_copy_(dim, neurons, fresh.to(part.dtype))


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device).to(like.device)
