"""salticid quantize: a model folder with smaller weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example:  salticid quantize runs/nano/3_anneal --bits 8 --out runs/nano/nano"


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model in full precision.")],
    out: Annotated[Path, typer.Option(help="Folder for the small model; must not exist yet.")],
    bits: Annotated[int, typer.Option(help="Bits per weight.")] = 8,
) -> None:
    """Store a model's weights in 8 bits; prints the folder and its size."""
    from salticid.checkpoints.load import load_model, load_processor
    from salticid.checkpoints.save import save_folder
    from salticid.cli.session import quiet
    from salticid.quant import quantize_model

    with quiet():
        small = quantize_model(load_model(model), bits=bits)
        save_folder(out, small, load_processor(model))
    megabytes = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{out}\t{megabytes:.1f} MB")
