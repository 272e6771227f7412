"""salticid caption: one line about each photo."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from salticid.cli.flags import Device, Json, MaxNewTokens, Model, Precision
from salticid.cli.photos import STDIN, check_exists
from salticid.cli.session import open_model
from salticid.errors import ImageError

if TYPE_CHECKING:
    from salticid.engine.vision_language import VisionLanguage

EXAMPLE = "Example:  salticid caption *.jpg --json > captions.jsonl"


def caption(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO", help="Photos; - reads one from standard input.")],
    model: Model = "nano",
    precision: Precision = "auto",
    device: Device = "auto",
    max_new_tokens: MaxNewTokens = 64,
    as_json: Json = False,
) -> None:
    """Describe photos, one line each; with several, the photo's name and a tab come first.

    A photo that cannot be read is reported on standard error, the others are described all the same, and the exit code is not 0.
    """
    if len(photos) == 1:
        check_exists(photos[0])
    code = 0
    with open_model(model, precision, device) as vlm:
        for name in _progress(photos):
            try:
                words = _describe(vlm, name, max_new_tokens)
            except ImageError as error:
                print(f"error: {error}", file=sys.stderr)
                code = error.exit_code
                if as_json:
                    print(json.dumps({"photo": name, "error": str(error)}), flush=True)
                continue
            line = f"{name}\t{words}" if len(photos) > 1 else words
            print(json.dumps({"photo": name, "caption": words}) if as_json else line, flush=True)
    if code:
        raise typer.Exit(code)


def _describe(vlm: VisionLanguage, name: str, max_new_tokens: int) -> str:
    photo = sys.stdin.buffer.read() if name == STDIN else name
    return " ".join(vlm.caption(photo, max_new_tokens=max_new_tokens).split())


def _progress(photos: Sequence[str]) -> Iterator[str]:
    """The photos, with a bar on standard error where somebody watches and the captions go elsewhere or are many."""
    if len(photos) == 1 or not sys.stderr.isatty():
        yield from photos
        return
    from rich.console import Console
    from rich.progress import Progress

    # Where captions and bar share a terminal, captions are printed above the bar; a file gets them untouched.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        yield from progress.track(photos, description="Captions")
