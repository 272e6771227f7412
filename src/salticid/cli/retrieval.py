"""salticid retrieval: whether a pretrained Q-Former finds the text of a photo, and the photo of a text."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from salticid.cli.flags import Device, Json

EXAMPLE = "Example:  salticid retrieval runs/tinygpt_v/nano_qformer --data data --rerank 16"


def retrieval(
    qformer: Annotated[Path, typer.Argument(metavar="FOLDER", help="What a recipe with kind: qformer wrote.")],
    data: Annotated[Path, typer.Option(help="Folder that holds flickr8k/ or coco/.")] = Path("data"),
    kind: Annotated[str, typer.Option(help="Captioned data set: flickr8k or coco.")] = "flickr8k",
    split: Annotated[str | None, typer.Option(help="Default: the split that is held out.")] = None,
    rerank: Annotated[int, typer.Option(min=0, help="Candidates that the matching head ranks again; 0: none.")] = 0,
    untrained: Annotated[bool, typer.Option("--untrained", help="Also the same Q-Former before any training.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Recall at 1, 5 and 10 between photos and captions, beside chance."""
    from salticid.cli.session import quiet

    with quiet():
        from salticid.checkpoints.qformer import load_qformer, new_like
        from salticid.engine.load import choose_device
        from salticid.eval.retrieval import as_table, captioned_split, evaluate_retrieval

        photos = captioned_split(data, kind, split)
        model, image_processor, tokenizer = load_qformer(qformer)
        progress = _progress()
        model.to(choose_device(device))  # type: ignore[arg-type]
        figures = evaluate_retrieval(model, image_processor, tokenizer, photos, rerank, progress=progress)
        before = None
        if untrained:
            before = evaluate_retrieval(new_like(model), image_processor, tokenizer, photos, progress=progress)
    if as_json:
        print(json.dumps({"trained": dataclasses.asdict(figures), "untrained": before and dataclasses.asdict(before)}, indent=2))
    else:
        print(as_table(figures, before))


def _progress() -> Callable[[str, int, int], None] | None:
    """A line on standard error that counts, where somebody watches."""
    if not sys.stderr.isatty():
        return None

    def show(name: str, done: int, total: int) -> None:
        print(f"\r{name}: {done} of {total}   ", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
