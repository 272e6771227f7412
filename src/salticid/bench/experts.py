"""A layer of experts beside the feed-forward network it was made from: one decode step, and a prompt.

Two rows stand for the bounds: "dense" reads and multiplies one network, "all experts" every one of them for every token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salticid.bench.one_layer import first_mlp, one_layer_model
from salticid.bench.speed import Clock, Spread
from salticid.bench.subject import compute_dtype, quantized
from salticid.errors import ConfigurationError, InputError
from salticid.models import VisionLanguageConfig
from salticid.models.moe.layer import ExpertsLayer

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
EXPERTS = {"experts": 4, "top_k": 2, "layers": "all", "routing": "dropless"}
# A gather of one expert per token and choice: at 600 tokens of Phi-2's width it would take over a hundred gigabytes.
DECODE_ONLY = ("batched_mm",)

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds for one token and for a prompt; `None` where it was not measured, and `note` says why."""

    name: str
    precision: str
    decode: Spread | None
    prefill: Spread | None
    note: str = ""


@torch.inference_mode()
def time_experts(
    config: VisionLanguageConfig, precision: str, tokens: int = 600, rounds: int = 20, clock: Clock = time.perf_counter
) -> list[LayerTime]:
    """Dense, all experts, then each implementation, in turn for every round.

    Args:
        config: whose layer; its experts, or four of which two are visited.

    Raises:
        InputError: no token or no round.
    """
    if tokens < 1 or rounds < 1:
        raise InputError(f"a measurement needs 1 token and 1 round, not {tokens} and {rounds}")
    calls, notes = _calls(config, precision)
    step = torch.randn(1, 1, config.text_config.hidden_size, generator=torch.Generator().manual_seed(0)).to(compute_dtype(precision))
    prompt = step.expand(1, tokens, -1) + torch.randn(1, tokens, 1, generator=torch.Generator().manual_seed(1)).to(step.dtype)
    decode = _time_in_turn(calls, step, rounds, clock)
    prefill = _time_in_turn({name: call for name, call in calls.items() if name not in DECODE_ONLY}, prompt, max(1, rounds // 4), clock)
    return [LayerTime(name, precision, decode.get(name), prefill.get(name), notes.get(name, "")) for name in (*calls, *notes)]


def _calls(config: VisionLanguageConfig, precision: str) -> tuple[dict[str, Call], dict[str, str]]:
    """What can be run at this precision, by name, and why the rest cannot."""
    dtype, experts = compute_dtype(precision), config.experts or EXPERTS
    dense = first_mlp(quantized(one_layer_model(config, None, dtype), precision))
    calls: dict[str, Call] = {"dense": dense}
    try:
        model = quantized(one_layer_model(config, experts, dtype), precision)
    except ConfigurationError as error:
        return calls, {"experts": str(error)}
    layer = first_mlp(model)
    assert isinstance(layer, ExpertsLayer)
    count = int(layer.router.wg.out_features)
    calls["all experts"] = _every_expert(dense, count)
    notes = {}
    for name in IMPLEMENTATIONS:
        call = _with_implementation(model.config, layer, name)
        try:
            call(torch.zeros(1, 1, config.text_config.hidden_size, dtype=dtype))
            calls[name] = call
        except (RuntimeError, NotImplementedError, KeyError, AttributeError, ValueError) as error:
            notes[name] = f"not at this precision: {' '.join(str(error).split())[:80]}"
    return calls, notes


def _every_expert(dense: nn.Module, count: int) -> Call:
    """As many networks of their own, so that each one's weights are read."""
    from copy import deepcopy

    networks = [dense, *(deepcopy(dense) for _ in range(count - 1))]
    return lambda x: torch.stack([network(x) for network in networks]).sum(0)


def _with_implementation(config: VisionLanguageConfig, layer: ExpertsLayer, name: str) -> Call:
    def call(x: Tensor) -> Tensor:
        config._experts_implementation = name
        out: Tensor = layer(x)
        layer.take_routing()
        return out

    return call


def _time_in_turn(calls: dict[str, Call], x: Tensor, rounds: int, clock: Clock) -> dict[str, Spread]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call(x)
            if round_:
                times[name].append((clock() - start) * 1e3)
    return {name: Spread.of(values) for name, values in times.items()}
