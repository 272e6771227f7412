"""The same decoder in llama.cpp: weights handed over as a GGUF file with a made-up vocabulary, for ids are all that is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salticid.bench.speed import Runner
from salticid.errors import InputError
from salticid.models import VisionLanguageModel

# transformers' model type -> llama.cpp's architecture.
ARCHITECTURES = {"llama": "llama", "phi": "phi2", "qwen2": "qwen2"}
# int8: 32 weights share a scale of 16 bits. int4: the same, packed again when loaded for the processor's instructions.
FILE_TYPES = {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}


class LlamaCppRunner:
    name = "llama.cpp"
    weights_read: int | None = None

    def __init__(self, llama: Any, unspoken: int):
        self.llama, self.unspoken = llama, unspoken

    def run(self, prompt: Sequence[int], new_tokens: int, on_token: Callable[[int], None]) -> None:
        self.llama.reset()
        step = list(prompt)
        for _ in range(new_tokens):
            self.llama.eval(step)
            logits_V = np.ctypeslib.as_array(self.llama._ctx.get_logits_ith(-1), shape=(self.llama.n_vocab(),)).copy()
            logits_V[self.unspoken] = -np.inf
            step = [int(logits_V.argmax())]
            on_token(step[0])


def make_runner(plain: VisionLanguageModel, precision: str, threads: int) -> Runner:
    """Write the file, load it, delete it; raises `InputError` for a decoder that llama.cpp does not know."""
    check_known(plain)
    from llama_cpp import Llama

    context = min(plain.config.text_config.max_position_embeddings, 4096)
    options = {"n_ctx": context, "n_batch": context, "n_threads": threads, "n_threads_batch": threads, "use_mmap": False, "verbose": False}
    with tempfile.TemporaryDirectory() as folder:
        llama = Llama(str(write_gguf(plain, precision, Path(folder) / "decoder.gguf")), **options)
    return LlamaCppRunner(llama, plain.config.image_token_id)


def check_known(plain: VisionLanguageModel) -> None:
    kind = plain.config.text_config.model_type
    if plain.experts is not None or plain.config.norms is not None:
        raise InputError("llama.cpp has no such decoder with experts or extra normalisations; measure the dense shape, such as phi-2")
    if kind not in ARCHITECTURES:
        raise InputError(f"the peer llama.cpp is not taught {kind!r} here; known: {', '.join(ARCHITECTURES)}")


def write_gguf(plain: VisionLanguageModel, precision: str, file: Path) -> Path:
    """The language model as a GGUF file, named as llama.cpp's own converter names it."""
    import gguf

    text = plain.config.text_config
    architecture = ARCHITECTURES[text.model_type]
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, text.num_hidden_layers)
    writer = gguf.GGUFWriter(file, architecture)
    _write_sizes(writer, text)
    _write_vocabulary(writer, text.vocab_size)
    wanted = gguf.GGMLQuantizationType[FILE_TYPES[precision]]
    for name, tensor in plain.language_model.state_dict().items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise InputError(f"llama.cpp has no place for the weight {name}")
        if text.tie_word_embeddings and target.startswith("output."):
            continue
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = text.num_attention_heads if name.endswith("q_proj.weight") else text.num_key_value_heads
            tensor = _interleave(tensor, heads)
        values = tensor.float().numpy()
        # Rows whose length no block divides stay as they are, as llama.cpp's own quantiser leaves them.
        whole = tensor.ndim == 1 or (wanted.name.startswith("Q") and values.shape[-1] % 32)
        stored = gguf.GGMLQuantizationType.F32 if whole else wanted
        writer.add_tensor(target, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_sizes(writer: Any, text: Any) -> None:
    channels = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rope = text.rope_parameters
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(channels)
    writer.add_value_length(channels)
    writer.add_rope_dimension_count(int(channels * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if hasattr(text, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(text.layer_norm_eps)


def _write_vocabulary(writer: Any, size: int) -> None:
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"token{index}" for index in range(size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["t o"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in the order that llama.cpp's rotation of neighbouring channels wants (its `LlamaModel.permute`)."""
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return torch.swapaxes(halves, 1, 2).reshape(rows, width)
