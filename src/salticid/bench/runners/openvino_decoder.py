"""The same decoder in OpenVINO: traced from torch, keys and values as its inner state, weights compressed by NNCF.

Shape legend: T new tokens, P past ones, H heads of keys and values, C channels of one head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from salticid.bench.speed import Runner
from salticid.errors import InputError
from salticid.models import VisionLanguageModel

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16", "int4": "bf16"}
LEAST = float(torch.finfo(torch.float32).min)


class _Decoder(nn.Module):
    """Ids, mask and past in; logits of the last token, and the new past, out. The mask is given, for a traced one would keep its size."""

    def __init__(self, model: VisionLanguageModel):
        super().__init__()
        self.language_model = model.language_model

    def forward(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            # Not by `update`: an empty cache joins the first keys to a tensor without dimensions, which cannot be converted.
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        outputs = self.language_model.base_model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        logits = self.language_model.get_output_embeddings()(outputs.last_hidden_state[:, -1:])
        layers: list[Any] = cache.layers
        return logits.float(), *(tensor for layer in layers for tensor in (layer.keys, layer.values))


class OpenVINORunner:
    name = "openvino"
    weights_read: int | None = None

    def __init__(self, compiled: Any, unspoken: int):
        self.request, self.unspoken = compiled.create_infer_request(), unspoken

    def run(self, prompt: Sequence[int], new_tokens: int, on_token: Callable[[int], None]) -> None:
        self.request.reset_state()
        step, past = np.array([prompt], dtype=np.int64), 0
        for _ in range(new_tokens):
            new = step.shape[1]
            total = past + new
            mask = np.triu(np.full((1, 1, new, total), LEAST, dtype=np.float32), k=past + 1)
            positions = np.arange(past, total, dtype=np.int64)[None]
            result = self.request.infer({"input_ids": step, "mask": mask, "position_ids": positions}, share_inputs=True)
            logits_V = result["logits"][0, -1]
            logits_V[self.unspoken] = -np.inf
            step, past = np.array([[int(logits_V.argmax())]], dtype=np.int64), total
            on_token(int(step[0, 0]))


def make_runner(plain: VisionLanguageModel, precision: str, threads: int) -> Runner:
    """Convert, compress and compile; raises `InputError` for a model with experts, whose loop cannot be traced."""
    if plain.experts is not None:
        raise InputError("the peer openvino cannot trace experts, whose tokens decide what runs; measure a dense shape, such as phi-2")
    import openvino

    model = make_stateful(plain)
    _compress(model, precision)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
    return OpenVINORunner(openvino.Core().compile_model(model, "CPU", options), plain.config.image_token_id)


@torch.inference_mode()
def make_stateful(plain: VisionLanguageModel) -> Any:
    """An OpenVINO model with inputs `input_ids` (1, T), `mask` (1, 1, T, P + T) and `position_ids` (1, T), and output `logits`."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    text = plain.config.text_config
    channels = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    dtype = plain.language_model.dtype
    names = [f"{kind}.{layer}" for layer in range(text.num_hidden_layers) for kind in ("key", "value")]
    past = [torch.zeros(1, text.num_key_value_heads, 3, channels, dtype=dtype) for _ in names]
    example = (torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 1, 2, 5, dtype=dtype), torch.tensor([[3, 4]]), *past)
    model = openvino.convert_model(_Decoder(plain).eval(), example_input=example)
    shapes = [[1, -1], [1, 1, -1, -1], [1, -1], *[[1, text.num_key_value_heads, -1, channels]] * len(names)]
    inputs = ["input_ids", "mask", "position_ids", *[f"past.{name}" for name in names]]
    for port, name, shape in zip(model.inputs, inputs, shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(model.outputs, ["logits", *[f"present.{name}" for name in names]], strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {f"past.{name}": f"present.{name}" for name in names})
    return model


def _compress(model: Any, precision: str) -> None:
    if precision in ("fp32", "bf16"):
        return
    import nncf

    if precision == "int8":
        nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64, ratio=1.0, all_layers=True)
