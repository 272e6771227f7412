"""salticid quantize: a model folder with smaller weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from salticid.quant.calibrate import Calibration
    from salticid.quant.folder import Report

EXAMPLE = "Example:  salticid quantize runs/nano/3_anneal --bits 4 --method gptq --calibrate data/flickr8k --out small"


def quantize(
    out: Annotated[Path, typer.Option(help="Folder for the small model; must not exist yet.")],
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Model in full precision: folder, or Hub id owner/name.")] = None,
    bits: Annotated[int, typer.Option(help="Bits per weight of the decoder layers: 8 or 4.")] = 8,
    group: Annotated[int, typer.Option(help="4 bits: inputs that share a scale: 32, 64 or 128.")] = 64,
    words: Annotated[int | None, typer.Option(help="Bits of word table and output head: 8 or 4. Default: 8.")] = None,
    tower: Annotated[int | None, typer.Option(help="Bits of a transformer vision tower: 16, 8 or 4. Default: 8.")] = None,
    method: Annotated[str, typer.Option(help="rtn (to the nearest), or with --calibrate and 4 bits: awq, gptq.")] = "rtn",
    calibrate: Annotated[Path | None, typer.Option(help="Folder of flickr8k, daquar or coco, whose name says which it is.")] = None,
    levels: Annotated[
        int, typer.Option(help="8 bits: steps from zero to a row's largest weight. For a model trained on from 8 bits: 123.")
    ] = 127,
    samples: Annotated[int, typer.Option(help="Photos to calibrate with.", min=1)] = 32,
    shape: Annotated[str | None, typer.Option(help="Instead of MODEL: random weights of a published size, such as tinygpt-v.")] = None,
    layers: Annotated[int | None, typer.Option(help="With --shape: keep only so many decoder layers.", min=1)] = None,
) -> None:
    """Store a model's weights in 8 or 4 bits, a few rows in memory at a time; prints the folder and its size."""
    from salticid.cli.session import quiet
    from salticid.errors import InputError

    if (model is None) == (shape is None):
        raise InputError("give either MODEL, a folder, or --shape, the name of a published size")
    with quiet():
        if shape is not None:
            from salticid.models.shapes import Shape
            from salticid.quant.random_weights import write_random_model

            if calibrate is not None or method != "rtn":
                raise InputError("random weights are not calibrated; leave --calibrate and --method out")
            size = Shape.named(shape) if layers is None else Shape.named(shape).with_layers(layers)
            write_random_model(size, out, bits, group, words=words, tower=tower, progress=_progress())
        elif model is not None:
            from salticid.engine.catalog import find_model
            from salticid.quant import quantize_folder

            calibration = None if calibrate is None else _calibration(calibrate, samples)
            options = {"words": words, "tower": tower}
            report = quantize_folder(
                find_model(model), out, bits, group, **options, method=method, calibration=calibration, levels=levels, progress=_progress()
            )
            _print_gains(report)
    megabytes = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{out}\t{megabytes:.1f} MB")


def _calibration(folder: Path, samples: int) -> Calibration:
    from salticid.data.datasets import SOURCES
    from salticid.errors import DataError
    from salticid.quant.calibrate import Calibration

    if folder.name not in SOURCES:
        raise DataError(f"no data set is called {folder.name!r}; --calibrate takes a folder named {', '.join(SOURCES)}")
    source = SOURCES[folder.name](folder)
    step = max(1, len(source) // samples)
    return Calibration([source.example(index, seed=0) for index in range(0, len(source), step)][:samples])


def _print_gains(report: Report) -> None:
    """What calibration was good for, on the samples that it saw."""
    if report.gains:
        nearest, chosen = (sum(getattr(gain, kind) for gain in report.gains) / len(report.gains) for kind in ("nearest", "chosen"))
        line = f"error of layer outputs on the samples: {nearest:.4f} rounded to the nearest, {chosen:.4f} with {report.method}"
        print(f"{line} (mean of {len(report.gains)} matrices)", file=sys.stderr)


def _progress() -> Callable[[str], None]:
    """A line on standard error that names what was done last, where somebody watches."""

    def show(name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{name:100.100}", end="", file=sys.stderr, flush=True)

    return show
