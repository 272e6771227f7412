"""A dense model as files for llama.cpp: `model.gguf`, the language model, and `mmproj.gguf`, what sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from salticid.checkpoints.export.chat_template import jinja_chat_template
from salticid.checkpoints.export.gguf_language import FILE_TYPES, check_language, write_language
from salticid.checkpoints.export.gguf_projector import CLASS_TOKENS, check_projector, projector_notes, write_projector
from salticid.checkpoints.export.gguf_vocabulary import read_vocabulary
from salticid.checkpoints.lora import merge_attached_lora
from salticid.checkpoints.save import new_folder
from salticid.data.templates import get_template
from salticid.errors import InputError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor

PARTS = ("language", "vision")
LANGUAGE_FILE, PROJECTOR_FILE = "model.gguf", "mmproj.gguf"


def export_gguf(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    out: Path,
    precision: str = "fp16",
    parts: Sequence[str] = PARTS,
    name: str = "model",
    class_token: str = "last",
) -> list[str]:
    """Write the files into a new folder, which appears whole or not at all.

    Args:
        model: dense, in full precision, on the processor. Attached LoRA is merged into its weights.
        precision: one of `FILE_TYPES`, of the language model; the projector has 32 bits at "fp32" and 16 otherwise.
        parts: one or both of `PARTS`.
        name: what the files say they are.
        class_token: "last" or "first", where the version of llama.cpp puts CLIP's; see `gguf_projector.CLASS_TOKENS`.

    Returns:
        Notes: where llama.cpp's answers will differ from Salticid's.

    Raises:
        InputError: an unknown precision or part, or a model that llama.cpp cannot hold; nothing is written.
        ConfigurationError: a tokenizer that llama.cpp has no name for.
        CheckpointError: the folder exists, or cannot be written.
    """
    if precision not in FILE_TYPES:
        raise InputError(f"unknown precision {precision!r} of GGUF files; known: {', '.join(FILE_TYPES)}")
    if not parts or not set(parts) <= set(PARTS):
        raise InputError(f"unknown parts {', '.join(parts)!r}; known: {', '.join(PARTS)}")
    if class_token not in CLASS_TOKENS:
        raise InputError(f"unknown place of the class token {class_token!r}; known: {', '.join(CLASS_TOKENS)}")
    notes, vocabulary = [], None
    if "vision" in parts:
        check_projector(model)
        notes += projector_notes(model, processor, class_token)
    if "language" in parts:
        check_language(model)
        template = get_template(model.config.template)
        rows = model.config.text_config.vocab_size
        vocabulary = read_vocabulary(processor.tokenizer, rows, template.answer_end, jinja_chat_template(template))
        if template.answer_end and not vocabulary.ends(template.answer_end):
            notes.append(f"answers end with {template.answer_end!r}, which is text: give it to llama.cpp as a stop string")
    merge_attached_lora(model)
    with new_folder(out) as folder:
        if vocabulary is not None:
            write_language(model, vocabulary, FILE_TYPES[precision], folder / LANGUAGE_FILE, name)
        if "vision" in parts:
            write_projector(model, processor, FILE_TYPES[precision], folder / PROJECTOR_FILE, name, class_token)
    return notes
