"""The same decoder in llama.cpp: weights handed over as a GGUF file with a made-up vocabulary, for ids are all that is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from salticid.bench.speed import Runner
from salticid.checkpoints.export.gguf_language import FILE_TYPES, FileType, write_language
from salticid.checkpoints.export.gguf_vocabulary import NORMAL, Vocabulary
from salticid.errors import InputError
from salticid.models import VisionLanguageModel

# In four bits all matrices alike, packed again when loaded for the processor's instructions; int8: 32 weights share a scale of 16 bits.
BENCH_TYPES = FILE_TYPES | {"int4": FileType("MOSTLY_Q4_0", "Q4_0", "Q4_0")}


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
    if plain.experts is not None or plain.config.norms is not None:
        raise InputError("llama.cpp has no such decoder with experts or extra normalisations; measure the dense shape, such as phi-2")
    from llama_cpp import Llama

    context = min(plain.config.text_config.max_position_embeddings, 4096)
    options = {"n_ctx": context, "n_batch": context, "n_threads": threads, "n_threads_batch": threads, "use_mmap": False, "verbose": False}
    with tempfile.TemporaryDirectory() as folder:
        llama = Llama(str(write_gguf(plain, precision, Path(folder) / "decoder.gguf")), **options)
    return LlamaCppRunner(llama, plain.config.image_token_id)


def write_gguf(plain: VisionLanguageModel, precision: str, file: Path) -> Path:
    """The language model as a GGUF file; raises `InputError` for one that llama.cpp computes differently."""
    rows = plain.config.text_config.vocab_size
    tokens = [f"token{index}" for index in range(rows)]
    vocabulary = Vocabulary("gpt2", tokens, [NORMAL] * rows, {"bos": 0, "eos": 0}, merges=["t o"])
    return write_language(plain, vocabulary, BENCH_TYPES[precision], file)
