"""A dense model of any tower, connector and decoder as a folder for OpenVINO: three graphs and the processor's files."""

from __future__ import annotations

from pathlib import Path

from salticid.checkpoints.export.chat_template import jinja_chat_template
from salticid.checkpoints.export.openvino_graphs import check_dense, compress, decoder_graph, vision_graph, words_graph
from salticid.checkpoints.lora import merge_attached_lora
from salticid.checkpoints.save import new_folder
from salticid.data.templates import get_template
from salticid.errors import CheckpointError, InputError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor

PRECISIONS = ("fp32", "fp16", "int8", "int4")
# Names as OpenVINO's own tools give them.
VISION_FILE, WORDS_FILE, DECODER_FILE = (f"openvino_{part}_model.xml" for part in ("vision_embeddings", "text_embeddings", "language"))


def export_openvino(model: VisionLanguageModel, processor: VisionLanguageProcessor, out: Path, precision: str = "fp16") -> None:
    """Write the files into a new folder, which appears whole or not at all.

    Args:
        model: dense, in full precision, on the processor. Attached LoRA is merged into its weights.
        precision: of the weights, one of `PRECISIONS`. "int8" and "int4" are of the decoder; the word table then has 8 bits, and what
            sees 16. How it computes is chosen where the graphs are compiled.

    Raises:
        InputError: an unknown precision, or a model with experts; nothing is written.
        CheckpointError: the folder exists, or cannot be written.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r} of OpenVINO files; known: {', '.join(PRECISIONS)}")
    check_dense(model)
    merge_attached_lora(model)
    with new_folder(out) as folder:
        processor.chat_template = jinja_chat_template(get_template(model.config.template))
        processor.save_pretrained(folder)
        _save(vision_graph(model), folder / VISION_FILE, precision != "fp32")
        for graph, file, small in ((words_graph, WORDS_FILE, "int8"), (decoder_graph, DECODER_FILE, precision)):
            made = graph(model)
            if precision in ("int8", "int4"):
                compress(made, small)
            _save(made, folder / file, precision != "fp32")


def _save(graph: object, file: Path, half: bool) -> None:
    import openvino

    try:
        openvino.save_model(graph, file, compress_to_fp16=half)
    except RuntimeError as error:
        raise CheckpointError(
            f"cannot write {file.name}: {str(error).splitlines()[-1]}; free some space or choose another folder"
        ) from error
