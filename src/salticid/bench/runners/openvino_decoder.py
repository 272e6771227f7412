"""The same decoder in OpenVINO: traced from torch, keys and values as its inner state, weights compressed by NNCF."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from salticid.bench.speed import Runner
from salticid.checkpoints.export.openvino_graphs import compress, decoder_graph
from salticid.errors import InputError
from salticid.models import VisionLanguageModel

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16", "int4": "bf16"}


class OpenVINORunner:
    name = "openvino"
    weights_read: int | None = None

    def __init__(self, compiled: Any, unspoken: int):
        self.request, self.unspoken = compiled.create_infer_request(), unspoken

    def run(self, prompt: Sequence[int], new_tokens: int, on_token: Callable[[int], None]) -> None:
        self.request.reset_state()
        step = list(prompt)
        for _ in range(new_tokens):
            logits_V = self.request.infer({"input_ids": np.array([step], dtype=np.int64)}, share_inputs=True)["logits"][0, -1]
            logits_V[self.unspoken] = -np.inf
            step = [int(logits_V.argmax())]
            on_token(step[0])


def make_runner(plain: VisionLanguageModel, precision: str, threads: int) -> Runner:
    """Convert, compress and compile; raises `InputError` for a model with experts, whose loop cannot be traced."""
    if plain.experts is not None:
        raise InputError("the peer openvino cannot trace experts, whose tokens decide what runs; measure a dense shape, such as phi-2")
    import openvino

    # Traced in float32: it recognises small weights in no other graph, and casts to the hinted precision itself.
    model = decoder_graph(copy.deepcopy(plain).float(), "input_ids")
    if precision in ("int8", "int4"):
        compress(model, precision)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
    return OpenVINORunner(openvino.Core().compile_model(model, "CPU", options), plain.config.image_token_id)
