"""salticid eval: figures of a model on held-out photos, beside two that see nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from salticid.cli.flags import Device, Json, Precision

EXAMPLE = "Example:  salticid eval nano --data data --benchmark daquar --benchmark yes_no_random"


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Embedded model, model folder, or Hub id owner/name.")] = "nano",
    data: Annotated[Path, typer.Option(help="Folder that holds flickr8k/, daquar/ and coco/.")] = Path("data"),
    benchmark: Annotated[list[str] | None, typer.Option(help="One of the benchmarks; give it again for more. Default: all.")] = None,
    blind: Annotated[bool, typer.Option(help="Also ask the model with the photos greyed out.")] = True,
    save_answers: Annotated[Path | None, typer.Option(help="Folder for every answer, as JSON lines.")] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model: captions, answers, yes or no, and whether it admits that it does not know. Answers are greedy."""
    from salticid.cli.session import open_model

    with open_model(model, precision, device) as vlm:
        from salticid.eval.runner import as_table
        from salticid.eval.runner import evaluate as run

        results = run(vlm.model, vlm.processor, data, benchmark, blind=blind, save_answers=save_answers, progress=_progress())
    if as_json:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
    else:
        print(as_table(results))


def _progress() -> Callable[[str, int, int], None] | None:
    """A line on standard error that counts, where somebody watches."""
    if not sys.stderr.isatty():
        return None

    def show(name: str, done: int, total: int) -> None:
        print(f"\r{name}: {done} of {total}   ", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
