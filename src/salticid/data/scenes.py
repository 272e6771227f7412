"""Cut-out pictures pasted onto photos: scenes of which it is known what stands where, as many as are wanted.

Few photos have boxes; of a scene every box is exact. Where to look for a thing that is named can be learned from them ("cut, paste and
learn", arXiv 1708.01642), before it is learned what things look like where they belong.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from salticid.data.records import Box, BoxedPhoto, CaptionedPhoto, common_area
from salticid.errors import ConfigurationError, DataError, ImageError

if TYPE_CHECKING:
    from PIL import Image

SIDES = (0.2, 0.65)
"""Least and greatest longer side of a pasted cut-out, as a share of the photo's."""
MOST_WORDS = 4
COVERED = 0.15
"""Share of the smaller of two cut-outs that the other may cover."""
TRIES = 8
LARGEST = 320


@dataclass(frozen=True, slots=True)
class CutOut:
    """A picture with a transparent ground, what it shows, and its width as a multiple of its height."""

    path: Path
    name: str
    aspect: float


@dataclass(frozen=True, slots=True)
class Pasted:
    """A cut-out and the box that it fills."""

    path: Path
    box: Box
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """What stands on a photo, those in front last."""

    pasted: tuple[Pasted, ...]

    def of_image(self, image: Image.Image) -> Image.Image:
        """The photo with everything pasted onto it, in RGB.

        Raises:
            ImageError: a cut-out is damaged.
        """
        from PIL import Image, ImageOps  # late: commands know examples before they need a photo

        scene = image.convert("RGB")
        for each in self.pasted:
            left, top = round(each.box.left * scene.width), round(each.box.top * scene.height)
            size = max(1, round(each.box.width * scene.width)), max(1, round(each.box.height * scene.height))
            picture = _open(each.path).resize(size, Image.Resampling.BILINEAR)
            picture = ImageOps.mirror(picture) if each.mirrored else picture
            scene.paste(picture, (left, top), picture)
        return scene


@lru_cache(maxsize=512)
def _open(path: Path) -> Image.Image:
    """What is not transparent of a cut-out, at most `LARGEST` pixels wide and high: large ones would take longer to open than to learn."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            whole = opened.convert("RGBA")
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{path} is damaged: {error}; fetch it again") from error
    picture = whole.crop(whole.getchannel("A").getbbox())
    picture.thumbnail((LARGEST, LARGEST))
    return picture


def read_cutouts(folder: str | os.PathLike[str]) -> list[CutOut]:
    """Every PNG below `folder` with an alpha channel that shows something, and a text of the same name whose first line says what.

    Names lose their article and full stop ("A green apple." is called "green apple"); a name of more than `MOST_WORDS` words is passed
    over.

    Raises:
        DataError: there is none.
    """
    found = [cutout for path in sorted(Path(folder).rglob("*.png")) if (cutout := _read_cutout(path)) is not None]
    if not found:
        raise DataError(f"{folder} has no cut-outs: PNG pictures with alpha and, beside each, a .txt that names it; see docs/data.md")
    return found


def _read_cutout(path: Path) -> CutOut | None:
    from PIL import Image

    try:
        lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        with Image.open(path) as picture:
            box = picture.getchannel("A").getbbox() if picture.mode in ("RGBA", "LA") else None
    except (OSError, UnicodeDecodeError):
        return None
    name = re.sub(r"^(an?|the|some)\s+", "", lines[0].strip().rstrip(".!").lower()) if lines else ""
    if box is None or not re.fullmatch(r"[a-z][a-z' -]*", name) or len(name.split()) > MOST_WORDS:
        return None
    return CutOut(path, name, (box[2] - box[0]) / (box[3] - box[1]))


def check_most(most: int) -> None:
    """Raises ConfigurationError where an option `most`, how many cut-outs a photo gets, is below one."""
    if most < 1:
        raise ConfigurationError(f"most is {most}; it is how many cut-outs a photo gets at most, one or more")


def untold(photo: CaptionedPhoto, cutouts: Sequence[CutOut]) -> list[CutOut]:
    """Those of the cut-outs whose like the photo's captions do not speak of."""
    words = set(re.findall(r"[a-z]+", " ".join(photo.captions).lower()))
    return [cutout for cutout in cutouts if words.isdisjoint(re.findall(r"[a-z]{3,}", cutout.name))]


def compose(photo: CaptionedPhoto, cutouts: Sequence[CutOut], most: int, chance: random.Random) -> tuple[Scene, BoxedPhoto]:
    """One to `most` cut-outs on a photo whose captions do not speak of the like, and the photo's record with their boxes alone.

    Boxes are drawn as for a square photo; on others cut-outs are stretched with it.
    """
    pasted: list[Pasted] = []
    for cutout in untold(photo, chance.sample(cutouts, min(chance.randint(1, most), len(cutouts)))):
        if box := _place(cutout, [each.box for each in pasted], chance):
            pasted.append(Pasted(cutout.path, box, chance.random() < 0.5))
    return Scene(tuple(pasted)), BoxedPhoto(photo.path, (), tuple(each.box for each in pasted))


def _place(cutout: CutOut, others: Sequence[Box], chance: random.Random) -> Box | None:
    """Somewhere on the photo where nothing is hidden; `None` where no such place was found."""
    for _ in range(TRIES):
        side = chance.uniform(*SIDES)
        width, height = side * min(1.0, cutout.aspect), side * min(1.0, 1 / cutout.aspect)
        box = Box(cutout.name, chance.uniform(0, 1 - width), chance.uniform(0, 1 - height), width, height, crowd=False)
        if all(common_area(box, other) <= COVERED * min(box.area, other.area) for other in others):
            return box
    return None
