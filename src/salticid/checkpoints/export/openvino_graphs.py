"""Parts of a dense model as OpenVINO graphs: what sees, the word table, and the decoder with keys and values as its inner state.

Shape legend: I photos, N tokens of one photo, T new tokens, P past ones, H heads of keys and values, C channels of one head, D width,
V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from salticid.errors import InputError
from salticid.models import VisionLanguageModel

LEAST = float(torch.finfo(torch.bfloat16).min)  # a number of float32 too


def check_dense(model: VisionLanguageModel) -> None:
    """Raises `InputError` for a model with experts, whose tokens decide what runs, which a trace cannot follow."""
    if model.experts is not None:
        raise InputError("openvino cannot trace experts, whose tokens decide what runs; export the dense model that they were made from")


class _Eye(nn.Module):
    """Pixels (I, 3, H, W) to image tokens (I, N, D)."""

    def __init__(self, model: VisionLanguageModel):
        super().__init__()
        self.vision_tower, self.connector = model.vision_tower, model.connector

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.connector(self.vision_tower(pixel_values)).float()


class _Words(nn.Module):
    """Ids (1, T) to embeddings (1, T, D)."""

    def __init__(self, model: VisionLanguageModel):
        super().__init__()
        self.table = model.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids).float()


class _Decoder(nn.Module):
    """New tokens and past in; logits (1, 1, V) of the last token, and the new past, out. Every token sees those before it."""

    def __init__(self, model: VisionLanguageModel, reads: str):
        super().__init__()
        self.model, self.reads = model, reads

    def forward(self, tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            # Not by `update`: an empty cache joins the first keys to a tensor without dimensions, which cannot be converted.
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        before, new = past[0].shape[2], tokens.shape[1]
        positions_1T = torch.arange(before, before + new)[None]
        seen_TS = torch.arange(before + new)[None] <= positions_1T.transpose(0, 1)
        mask = torch.zeros_like(seen_TS, dtype=past[0].dtype).masked_fill(~seen_TS, LEAST)[None, None]
        hidden_1TD = self.model.language_model.base_model(
            **{self.reads: tokens}, attention_mask=mask, position_ids=positions_1T, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = self.model._predict(hidden_1TD[:, -1:])
        layers: list[Any] = cache.layers
        return logits.float(), *(tensor for layer in layers for tensor in (layer.keys, layer.values))


def vision_graph(model: VisionLanguageModel) -> Any:
    """An OpenVINO model with input `pixel_values` (I, 3, H, W) and output `image_features` (I, N, D)."""
    size = model.config.vision_config.image_size
    return _convert(_Eye(model), torch.zeros(1, 3, size, size), {"pixel_values": [-1, 3, size, size]}, ["image_features"])


def words_graph(model: VisionLanguageModel) -> Any:
    """An OpenVINO model with input `input_ids` (1, T) and output `inputs_embeds` (1, T, D)."""
    return _convert(_Words(model), torch.zeros(1, 2, dtype=torch.int64), {"input_ids": [1, -1]}, ["inputs_embeds"])


def decoder_graph(model: VisionLanguageModel, reads: str = "inputs_embeds") -> Any:
    """A stateful OpenVINO model with output `logits` (1, 1, V) of the last token; `reset_state` starts a new text.

    Args:
        reads: its input: "inputs_embeds" (1, T, D), or "input_ids" (1, T).

    Raises:
        InputError: see `check_dense`.
    """
    from openvino._offline_transformations import apply_make_stateful_transformation

    check_dense(model)
    text = model.config.text_config
    channels = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    names = [f"{kind}.{layer}" for layer in range(text.num_hidden_layers) for kind in ("key", "value")]
    dtype = model.language_model.dtype
    tokens = torch.zeros(1, 2, dtype=torch.int64) if reads == "input_ids" else torch.zeros(1, 2, text.hidden_size, dtype=dtype)
    past = [torch.zeros(1, text.num_key_value_heads, 3, channels, dtype=dtype) for _ in names]
    shapes = {reads: [1, -1, *tokens.shape[2:]]} | {f"past.{name}": [1, text.num_key_value_heads, -1, channels] for name in names}
    graph = _convert(_Decoder(model, reads), (tokens, *past), shapes, ["logits", *[f"present.{name}" for name in names]])
    apply_make_stateful_transformation(graph, {f"past.{name}": f"present.{name}" for name in names})
    return graph


@torch.inference_mode()
def _convert(module: nn.Module, example: Any, inputs: dict[str, list[int]], outputs: list[str]) -> Any:
    """Trace a module; name its inputs, with their shapes (-1: any), and its outputs."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: checks of shapes, which are constants in the graph and meant to be
        graph = openvino.convert_model(module.eval(), example_input=example)
    for port, (name, shape) in zip(graph.inputs, inputs.items(), strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(graph.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()
    return graph


def compress(graph: Any, precision: str) -> None:
    """Weights of a graph in 8 bits (one scale per row) or 4 bits (one per 64 inputs), in place, by NNCF."""
    import nncf

    if precision == "int8":
        nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64, ratio=1.0, all_layers=True)
