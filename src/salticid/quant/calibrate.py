"""Decoder layers are rounded one after another, each on what the layers before it, already rounded, give for a few real samples.

In memory are one decoder layer in float32, the samples as they stand before it, and at first the parts that turn samples into them.

T tokens of one sample, D width, S tokens, K choices per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from salticid.data.collate import Collator
from salticid.data.conversation import Example
from salticid.data.templates import get_template
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor
from salticid.models.moe.experts import Experts, activate
from salticid.models.moe.layer import collect_routing
from salticid.quant.rounding import SOLVERS, InputStatistics, RoundingOptions, Small, output_error, round_nearest, rounded_weight
from salticid.quant.stream import Blueprint, Matrix, Source

DECODER = "language_model.model.layers"


@dataclass(frozen=True)
class Calibration:
    """Samples, each a photo with what is said about it, and how to round with them."""

    examples: Sequence[Example]
    options: RoundingOptions = field(default_factory=RoundingOptions)

    def __post_init__(self) -> None:
        if not self.examples:
            raise ConfigurationError("there are no samples to calibrate with; give at least one")


@dataclass(frozen=True)
class Gain:
    """Relative error of a matrix' outputs on the samples, rounded to the nearest, and as it was rounded."""

    name: str
    nearest: float
    chosen: float


@dataclass
class _Sample:
    """Hidden states before a layer (1, T, D), and what else each layer is called with."""

    hidden: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]


@torch.no_grad()
def calibrate(
    config: VisionLanguageConfig,
    source: Source,
    processor: VisionLanguageProcessor,
    blueprint: Blueprint,
    method: str,
    calibration: Calibration,
    gains: list[Gain],
) -> Iterator[tuple[str, Small]]:
    """(name, small tensors) of each matrix of the decoder layers that gets four bits; `gains` grows by one for each."""
    model = _skeleton(config)
    samples = _samples(model, source, processor, calibration)
    matrices = {matrix.name: matrix for matrix in blueprint.matrices if matrix.place.group is not None}
    for index, layer in enumerate(model.get_submodule(DECODER).children()):
        prefix = f"{DECODER}.{index}."
        _fill(layer, prefix, source)
        own = {name: matrix for name, matrix in matrices.items() if name.startswith(prefix)}
        for name, small, gain in _round_layer(layer, prefix, own, method, calibration.options, index, samples):
            gains.append(gain)
            yield name, small
        for sample in samples:
            sample.hidden = _run(layer, sample, index)
        _empty(layer)


def _round_layer(
    layer: nn.Module, prefix: str, own: dict[str, Matrix], method: str, options: RoundingOptions, index: int, samples: Sequence[_Sample]
) -> Iterator[tuple[str, Small, Gain]]:
    """Rounds the matrices of one layer, in place too, on what the layer's float weights give them."""
    linears = {name: layer.get_submodule(name.removeprefix(prefix).removesuffix(".weight")) for name in own if own[name].experts is None}
    statistics = {name: InputStatistics(own[name].width, method == "gptq") for name in linears}
    routed: dict[str, list[tuple[Tensor, Tensor]]] = {}
    hooks = [linear.register_forward_pre_hook(partial(_note, statistics[name])) for name, linear in linears.items()]
    for name, module in layer.named_modules():
        if isinstance(module, Experts):
            hooks.append(module.register_forward_pre_hook(partial(_note_routed, routed.setdefault(name, []))))
    for sample in samples:
        _run(layer, sample, index)
    for hook in hooks:
        hook.remove()
    for name, linear in linears.items():
        small, gain = _solve(name, linear.get_parameter("weight"), statistics.pop(name), own[name], method, options)
        yield name, small, gain
    for name, inputs in routed.items():
        yield from _round_experts(layer.get_submodule(name), f"{prefix}{name}.", inputs, own, method, options)


def _round_experts(
    experts: Any, prefix: str, inputs: Sequence[tuple[Tensor, Tensor]], own: dict[str, Matrix], method: str, options: RoundingOptions
) -> Iterator[tuple[str, Small, Gain]]:
    """Each expert on the tokens that were sent to it; one that got none is rounded to the nearest."""
    names = {name: own.get(prefix + name) for name in (experts.up_name, "down_proj")}
    smalls: dict[str, list[Small]] = {name: [] for name in names}
    gains: dict[str, list[Gain]] = {name: [] for name in names}
    for expert in range(experts.num_experts):
        arriving = [x_SD[(experts_SK == expert).any(dim=-1)] for x_SD, experts_SK in inputs]
        for name, matrix in names.items():
            if matrix is None:  # in eight bits
                continue
            statistics = InputStatistics(matrix.width, method == "gptq")
            for x in arriving:
                statistics.add(x)
            small, gain = _solve(matrix.name, experts.get_parameter(name)[expert], statistics, matrix, method, options)
            smalls[name].append(small)
            gains[name].append(gain)
            if name == experts.up_name:
                bias = experts.get_parameter(f"{name}_bias")[expert] if experts.has_bias else None
                ups = (nn.functional.linear(x, experts.get_parameter(name)[expert], bias) for x in arriving)
                arriving = [activate(up, experts.act_fn, experts.has_gate) for up in ups]
    for name, matrix in names.items():
        if matrix is not None:
            stacked = {end: torch.stack([small[end] for small in smalls[name]]) for end in smalls[name][0]}
            count = len(gains[name])
            nearest, chosen = (sum(getattr(gain, kind) for gain in gains[name]) / count for kind in ("nearest", "chosen"))
            yield matrix.name, stacked, Gain(matrix.name, nearest, chosen)


def _solve(
    name: str, weight_NK: Tensor, inputs: InputStatistics, matrix: Matrix, method: str, options: RoundingOptions
) -> tuple[Small, Gain]:
    """Rounds one matrix; its float weight becomes the rounded one."""
    assert matrix.place.group is not None
    nearest = round_nearest(weight_NK, matrix.place.group)
    if inputs.count:
        small = SOLVERS[method](weight_NK, inputs, matrix.place.group, options)
        gain = Gain(name, output_error(weight_NK, nearest, inputs.rows_MK), output_error(weight_NK, small, inputs.rows_MK))
    else:
        small = nearest | ({"input_scale": torch.ones(matrix.width)} if matrix.place.scaled else {})
        gain = Gain(name, 0.0, 0.0)
    weight_NK.copy_(rounded_weight(small, matrix.rows))
    return small, gain


def _note(statistics: InputStatistics, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    statistics.add(inputs[0])


def _note_routed(seen: list[tuple[Tensor, Tensor]], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append((inputs[0].clone(), inputs[1].clone()))


def _run(layer: nn.Module, sample: _Sample, index: int) -> Tensor:
    args, options = sample.calls[index]
    out = layer(sample.hidden, *args, **options)
    collect_routing(layer)  # lets go of what the router decided
    return out


class _Recorder(nn.Module):
    """Stands for a decoder layer: notes what it is called with and passes hidden states on."""

    def __init__(self, layer: nn.Module, seen: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]]):
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", "full_attention")
        self._seen = seen

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        self._seen.append((hidden_states, args, options))
        return hidden_states


def _samples(model: VisionLanguageModel, source: Source, processor: VisionLanguageProcessor, calibration: Calibration) -> list[_Sample]:
    """The samples as the first decoder layer gets them."""
    collate = Collator(processor, get_template(model.config.template))
    parts: list[tuple[nn.Module, str]] = [(getattr(model, name), f"{name}.") for name in ("vision_tower", "connector")]
    words = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    parts.append((model.get_input_embeddings(), f"{words}."))
    decoder: Any = model.language_model.base_model
    layers, norm = decoder.layers, [(name, child) for name, child in decoder.named_children() if "norm" in name]
    seen: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []
    decoder.layers = nn.ModuleList(_Recorder(layer, seen) for layer in layers)
    for name, _ in norm:
        setattr(decoder, name, nn.Identity())
    model.set_output_embeddings(nn.Identity())
    for part, prefix in parts:
        _fill(part, prefix, source)
    samples = []
    for example in calibration.examples:
        batch = collate([example])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "pixel_values") if name in batch}
        model(**inputs, use_cache=False)
        samples.append(_Sample(seen[0][0], [(args, options) for _, args, options in seen]))
        seen.clear()
    decoder.layers = layers
    for part, _ in parts:
        _empty(part)
    return samples


def _skeleton(config: VisionLanguageConfig) -> VisionLanguageModel:
    """The model without parameters: they are on "meta", while buffers that follow from the configuration are real."""
    with _parameters_on_meta():
        return VisionLanguageModel(config).eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad))

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _fill(module: nn.Module, prefix: str, source: Source) -> None:
    """Give parameters and stored buffers their values, in float32."""
    for name, _ in list(module.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        value = nn.Parameter(source.read(prefix + name).float(), requires_grad=False)
        setattr(module.get_submodule(owner), attribute, value)
    for name, buffer in module.named_buffers():
        if prefix + name in source.likes:
            buffer.copy_(source.read(prefix + name))


def _empty(module: nn.Module) -> None:
    """Let go of the parameters' values."""
    for name, parameter in list(module.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, nn.Parameter(parameter.to("meta"), requires_grad=False))
