"""salticid merge: one model of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salticid.errors import InputError

EXAMPLE = "Example:  salticid merge runs/nano/7_captions runs/nano/8_captions --out runs/nano/8_mean"


def merge(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Models trained from the same one: embedded name, folder, or Hub id."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the merged model, in float32; must not exist yet.")],
    shares: Annotated[
        str | None, typer.Option(help="One for each model, 1 together, such as 0.7,0.3; below zero, away from it. Default: equal ones.")
    ] = None,
) -> None:
    """Add up the weights of models that were trained from the same one; prints the folder. The mean often answers better than each."""
    import salticid.quant  # noqa: F401  lets transformers read folders with small weights
    from salticid.checkpoints.merge import merge_folders
    from salticid.cli.session import quiet
    from salticid.engine.catalog import find_model

    numbers = None if shares is None else _numbers(shares)
    with quiet():
        merge_folders([find_model(model) for model in models], out, numbers)
    print(out)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise InputError(f"--shares is {text!r}; give numbers with commas between them, such as --shares=0.7,0.3") from error
