"""salticid locate: boxes around what a phrase names."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salticid.cli.flags import Device, Json, Model, Precision
from salticid.cli.photos import open_arguments
from salticid.cli.session import open_model
from salticid.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

EXAMPLE = "Example:  salticid locate photo.jpg 'the red ball' --model models/tinygpt-v --out boxed.png"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def locate(
    photo: Annotated[str, typer.Argument(metavar="PHOTO", help="A photo; - reads it from standard input.")],
    phrase: Annotated[str, typer.Argument(metavar="PHRASE", help="What to locate, in quotes.")],
    out: Annotated[Path | None, typer.Option(help="New .png, .jpg or .webp file: the photo with the boxes drawn on it.")] = None,
    model: Model = "nano",
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Locate something on a photo: prints left, top, right and bottom of each box, in pixels of the upright photo.

    It takes a model that was trained to locate, such as TinyGPT-V's stage 4.
    """
    from salticid.engine.locate import check_phrase

    phrase = check_phrase(phrase)
    if out is not None:
        _check_out(out)
    (source,) = open_arguments([photo])
    with open_model(model, precision, device) as vlm:
        from salticid.data.boxes import from_pixels
        from salticid.data.draw import draw_regions
        from salticid.models.photos import read_photo

        picture = read_photo(source)
        boxes = vlm.locate(picture, phrase)
        if out is not None:
            _save(draw_regions(picture, [from_pixels(box, *picture.size, label=phrase) for box in boxes]), out)
    if as_json:
        facts = {"photo": photo, "phrase": phrase, "model": model, "width": picture.width, "height": picture.height}
        print(json.dumps(facts | {"boxes": boxes, "out": None if out is None else str(out)}))
    else:
        for box in boxes:
            print(*box, sep="\t")


def _check_out(out: Path) -> None:
    """What would make the drawing fail at the end is refused before a model is loaded."""
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"--out {out} has no known suffix; known: {', '.join(FORMATS)}")
    if os.path.lexists(out):
        raise InputError(f"{out} exists already; name a new file, or delete it first")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"cannot write {out}: {out.parent} is no folder that you may write to; make it, or name another")


def _save(picture: Image.Image, out: Path) -> None:
    """The file appears whole, by one rename, or not at all."""
    partial: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        partial = Path(name)
        with os.fdopen(handle, "wb") as file:
            picture.save(file, FORMATS[out.suffix.lower()], quality=95)
        partial.chmod(0o644)
        partial.replace(out)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {out}: {error}; free some space, or choose a .png file elsewhere") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
