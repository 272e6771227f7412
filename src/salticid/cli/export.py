"""salticid export: a dense model as files for llama.cpp or OpenVINO."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from salticid.cli.extras import require
from salticid.errors import InputError

EXAMPLE = "Example:  salticid export nano --to openvino --precision int8 --out nano-openvino"
FORMATS = ("gguf", "openvino")
PARTS = {"all": ("language", "vision"), "language": ("language",), "vision": ("vision",)}


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Embedded model, model folder, or Hub id owner/name.")],
    to: Annotated[str, typer.Option(help="gguf (llama.cpp) or openvino.")],
    out: Annotated[Path, typer.Option(help="Folder for the files; must not exist yet.")],
    precision: Annotated[str, typer.Option(help="Of the weights: fp32, fp16, int8, int4; bf16 for gguf.")] = "fp16",
    part: Annotated[str, typer.Option(help="gguf: all, language (words alone), or vision (the projector file).")] = "all",
    class_token: Annotated[
        str, typer.Option(help="gguf with CLIP: where llama.cpp puts the class token: last (since May 2025) or first.")
    ] = "last",
) -> None:
    """Write a dense model for llama.cpp or OpenVINO; prints the files. Notes say where answers will differ."""
    from salticid.cli.session import open_model

    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}; known: {', '.join(FORMATS)}")
    if part not in PARTS:
        raise InputError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    if to == "openvino" and part != "all":
        raise InputError("--part is for gguf; an OpenVINO folder holds all three parts, each in a file of its own")
    if to == "gguf":
        require("convert", ("gguf",))
    else:
        require("openvino", ("openvino", "nncf") if precision in ("int8", "int4") else ("openvino",))
    notes: list[str] = []
    # NNCF draws its progress on standard output, where programs read the files' names.
    with open_model(model, "fp32", "cpu", lean=False) as vlm, redirect_stdout(sys.stderr):
        if to == "gguf":
            from salticid.checkpoints.export.gguf_folder import export_gguf

            name = model if not Path(model).is_dir() else Path(model).resolve().name
            notes = export_gguf(vlm.model, vlm.processor, out, precision, PARTS[part], name, class_token)
        else:
            from salticid.checkpoints.export.openvino_folder import export_openvino

            export_openvino(vlm.model, vlm.processor, out, precision)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for file in sorted(out.iterdir()):
        print(f"{file}\t{file.stat().st_size / 1e6:.1f} MB")
