"""The language model as a GGUF file, named and laid out as llama.cpp's own converter does.

Facts: llama.cpp's `src/models/*.cpp` (what each architecture computes) and the tensor names of the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from salticid.checkpoints.export.gguf_vocabulary import Vocabulary
from salticid.errors import InputError
from salticid.models import VisionLanguageModel
from salticid.models.norms import NormsConfig


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's. activation: the only one that it computes. interleave: it rotates neighbouring channels, not halves.

    norm_plus_one: its converter stores Gemma's normalisations with the one that transformers adds while computing.
    """

    name: str
    activation: str
    interleave: bool = False
    norm_plus_one: bool = False


# By transformers' model type: all that `VisionLanguageConfig` takes.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", "silu", interleave=True),
    "mistral": Architecture("llama", "silu", interleave=True),
    "qwen2": Architecture("qwen2", "silu"),
    "qwen3": Architecture("qwen3", "silu"),
    "phi": Architecture("phi2", "gelu_new"),
    "stablelm": Architecture("stablelm", "silu"),
    "gemma": Architecture("gemma", "gelu_pytorch_tanh", norm_plus_one=True),
    "gemma2": Architecture("gemma2", "gelu_pytorch_tanh", norm_plus_one=True),
}
# Of these llama.cpp wants an output head of its own.
NEVER_TIED = ("phi2", "stablelm")


@dataclass(frozen=True)
class FileType:
    """GGUF's types for matrices of the layers, and for word table and output head; everything else is F32."""

    name: str
    layers: str
    words: str


# Four bits cost the words most, as in `salticid.quant.plan`.
FILE_TYPES: dict[str, FileType] = {
    "fp32": FileType("ALL_F32", "F32", "F32"),
    "fp16": FileType("MOSTLY_F16", "F16", "F16"),
    "bf16": FileType("MOSTLY_BF16", "BF16", "BF16"),
    "int8": FileType("MOSTLY_Q8_0", "Q8_0", "Q8_0"),
    "int4": FileType("MOSTLY_Q4_0", "Q4_0", "Q8_0"),
}
WORDS = ("token_embd.weight", "output.weight")


def check_language(model: VisionLanguageModel) -> None:
    """Raises `InputError` for a language model that llama.cpp computes differently, or not at all."""
    text = model.config.text_config
    if model.experts is not None:
        raise InputError("llama.cpp has no architecture for these experts; export the dense model that they were made from")
    if model.config.norms is not None and NormsConfig.from_dict(model.config.norms) != NormsConfig():
        raise InputError("llama.cpp has no decoder with extra normalisations (TinyGPT-V); export to openvino instead")
    architecture, activation = ARCHITECTURES[text.model_type], getattr(text, "hidden_activation", None) or text.hidden_act
    if activation != architecture.activation:
        raise InputError(f"llama.cpp's {architecture.name} computes {architecture.activation}, this model {activation}; use openvino")
    if getattr(text, "qk_layernorm", False):
        raise InputError(f"llama.cpp's {architecture.name} has no such normalised queries and keys; export to openvino instead")
    if text.rope_parameters["rope_type"] not in ("default", "linear", "llama3"):
        raise InputError(f"the rotary embedding {text.rope_parameters['rope_type']!r} has no form here; export to openvino instead")
    if getattr(text, "query_pre_attn_scalar", _channels(text)) != _channels(text):
        raise InputError("llama.cpp's gemma2 scales queries by the depth of a head; this model does not, so export it to openvino")
    if architecture.norm_plus_one and not text.tie_word_embeddings:
        raise InputError(f"llama.cpp's {architecture.name} has no output head of its own; export to openvino instead")


def write_language(model: VisionLanguageModel, vocabulary: Vocabulary, file_type: FileType, file: Path, name: str = "model") -> Path:
    """Write the language model, one tensor in memory at a time.

    Args:
        model: in full precision, on the processor.
        name: what the file says it is.

    Raises:
        InputError: see `check_language`; a weight that llama.cpp has no place for.
    """
    import gguf

    check_language(model)
    text = model.config.text_config
    writer = gguf.GGUFWriter(file, ARCHITECTURES[text.model_type].name)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_type.name])
    _write_sizes(writer, text)
    vocabulary.write(writer)
    write_tensors(writer, list(_tensors(model)), lambda target: file_type.words if target in WORDS else file_type.layers)
    return file


def write_tensors(writer: Any, tensors: list[tuple[str, Tensor]], type_of: Callable[[str], str]) -> None:
    """Header, keys and tensors to a writer's file. Vectors, and rows whose length no block divides, stay as they are (F32)."""
    import gguf

    stored = []
    for target, tensor in tensors:
        wanted = gguf.GGMLQuantizationType[type_of(target)]
        block, _ = gguf.GGML_QUANT_SIZES[wanted]
        kind = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 or tensor.shape[-1] % block else wanted
        shape = gguf.quants.quant_shape_to_byte_shape(tuple(tensor.shape), kind)
        writer.add_tensor_info(target, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
        stored.append(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for (_, tensor), kind in zip(tensors, stored, strict=True):
        values = tensor.detach().float().contiguous().numpy()
        writer.write_tensor_data(np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8))
    writer.close()


def _tensors(model: VisionLanguageModel) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's names and layouts of the weights."""
    import gguf

    text = model.config.text_config
    architecture = ARCHITECTURES[text.model_type]
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(kind, text.num_hidden_layers)
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    left_out = ("lm_head.weight",) if text.tie_word_embeddings and architecture.name not in NEVER_TIED else ()
    for name, tensor in model.language_model.state_dict().items():
        if name in left_out:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise InputError(f"llama.cpp's {architecture.name} has no place for the weight {name}; export to openvino instead")
        projection = name.split(".")[-2]
        if architecture.interleave and projection in heads:
            tensor = _interleave(tensor, heads[projection])
        if architecture.norm_plus_one and tensor.ndim == 1:
            tensor = tensor + 1
        yield target, tensor
    if text.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _frequency_factors(text)


def _write_sizes(writer: Any, text: Any) -> None:
    import gguf

    channels = _channels(text)
    rope = text.rope_parameters
    window = getattr(text, "sliding_window", None)
    soft_caps = {"attn_logit": "attn_logit_softcapping", "final_logit": "final_logit_softcapping"}
    # Only of gemma2 does llama.cpp know the window; within it the others are as they were trained.
    context = text.max_position_embeddings
    writer.add_context_length(context if window is None or text.model_type == "gemma2" else min(context, window))
    if text.model_type == "gemma2":
        writer.add_sliding_window(window)
    for option, key in soft_caps.items():
        if getattr(text, key, None) is not None:
            getattr(writer, f"add_{option}_softcapping")(getattr(text, key))
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(channels)
    writer.add_value_length(channels)
    writer.add_vocab_size(text.vocab_size)
    writer.add_rope_dimension_count(int(channels * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if text.model_type == "stablelm":
        writer.add_parallel_residual(text.use_parallel_residual)
    if hasattr(text, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(text.layer_norm_eps)


def _channels(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _frequency_factors(text: Any) -> Tensor:
    """What llama.cpp divides each rotary frequency by (Llama 3.1's scaling)."""
    channels, rope = _channels(text), text.rope_parameters
    plain_C = rope["rope_theta"] ** -(torch.arange(0, channels, 2) / channels)
    scaled_C, _ = ROPE_INIT_FUNCTIONS["llama3"](text, torch.device("cpu"))
    return plain_C / scaled_C


def _interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows (or biases) of queries or keys in the order that llama.cpp's rotation of neighbouring channels wants."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)
