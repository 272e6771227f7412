"""Captioned photos in tar shards, as img2dataset writes LAION, CC3M and SBU for TinyGPT-V's stages 1 and 2 (webdataset's layout).

A shard holds `000000012.jpg` beside `000000012.json` (whose "caption" is read) or `000000012.txt`. All shards are indexed once when the
data set is opened: which photo and which words lie where. Then any example is two short reads, in any order, with no copy unpacked.
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from salticid.data.clean import clean as clean_caption
from salticid.data.conversation import Example, Turn
from salticid.data.options import check_share
from salticid.errors import ConfigurationError, DataError

logger = logging.getLogger(__name__)

PHOTOS = (".jpg", ".jpeg", ".png", ".webp")
TEXTS = (".json", ".txt")
BLOCK = tarfile.BLOCKSIZE
# Places are counted in tar's blocks, so that four bytes reach two terabytes into a shard.
SAMPLE = np.dtype([("shard", "u4"), ("photo", "u4"), ("photo_size", "u4"), ("text", "u4"), ("text_size", "u4"), ("is_json", "?")])

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, slots=True)
class ShardPhoto:
    """A photo inside a shard. `read_photo` takes it for an open file, so nothing is read before that."""

    shard: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Where it lies, for errors."""
        return f"{self.shard}, byte {self.offset}"

    def seekable(self) -> bool:
        return False

    def read(self) -> bytes:
        """The photo's bytes."""
        return _read(self.shard, self.offset, self.size)


class WebDataset:
    """Photos with one caption each.

    Args:
        folder: of the shards.
        shards: their names in it: a pattern such as `*.tar`, or braces such as `{00000..01255}.tar`, which must all be there.
        question: what is asked; nothing, where a stage learns captions behind bare photos.
        clean: reword captions as upstream does, see `salticid.data.clean`.
        skip_damaged: greatest share of shards (0 to 1) that may be cut short or damaged. Above 0, their whole samples are used, and
            captions that cannot be read are passed over; at 0 both are errors.
        index: a file below `folder` to keep the index in (`.npy`); it is used again while the shards are the same.

    `incomplete` counts samples without a photo or words, `damaged` names shards that break off.

    Raises:
        DataError: there are no shards, one that is named is missing, they hold no sample, or too many are damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        shards: str = "*.tar",
        question: str = "",
        clean: bool = True,
        skip_damaged: float = 0.0,
        index: str | None = None,
    ) -> None:
        check_share("skip_damaged", skip_damaged)
        self.paths = find_shards(Path(folder), shards)
        self.question, self.clean, self.skip_damaged = question, clean, skip_damaged
        self.incomplete = 0
        self.damaged: list[str] = []
        kept = None if index is None else Path(folder) / index
        self.samples = self._open(kept)
        if not len(self.samples):
            raise DataError(f"The {len(self.paths)} shards in {folder} hold no photo with a caption beside it; check the option 'shards'.")
        if self.incomplete:
            logger.warning("%s: %d samples lack a photo or a caption and are left out", folder, self.incomplete)

    def _open(self, kept: Path | None) -> np.ndarray:
        """The index, from its file where that belongs to these very shards."""
        stamp = np.array([f"{path.name}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}" for path in self.paths])
        if kept is not None and (samples := _load_index(kept, stamp)) is not None:
            return samples
        samples = np.concatenate([self._index(number) for number in range(len(self.paths))])
        if len(self.damaged) > self.skip_damaged * len(self.paths):
            raise DataError(
                f"{len(self.damaged)} of {len(self.paths)} shards are cut short or damaged, such as {self.damaged[0]}; fetch them again, "
                f"leave them out of 'shards', or raise skip_damaged above {len(self.damaged) / len(self.paths):.3g}."
            )
        if self.damaged:
            logger.warning("%d shards are cut short or damaged, such as %s", len(self.damaged), self.damaged[0])
        if kept is not None:
            _save_index(kept, stamp, samples)
        return samples

    def _index(self, number: int) -> np.ndarray:
        path = self.paths[number]
        found: list[tuple[int, int, int, int, int, bool]] = []
        for _, group in itertools.groupby(_members(path, self.damaged), key=lambda member: _split(member.name)[0]):
            members = {_split(member.name)[1]: member for member in group}
            photo = next((members[ending] for ending in PHOTOS if ending in members), None)
            text = next((members[ending] for ending in TEXTS if ending in members), None)
            if photo is None or text is None or not photo.size:
                self.incomplete += 1
                continue
            places = (photo.offset_data // BLOCK, photo.size, text.offset_data // BLOCK, text.size)
            found.append((number, *places, _split(text.name)[1] == ".json"))
        return np.array(found, dtype=SAMPLE)

    def __len__(self) -> int:
        return len(self.samples)

    def example(self, index: int, seed: int) -> Example:
        """The sample at `index`; the seed draws nothing.

        Raises:
            DataError: the caption cannot be read, and `skip_damaged` is 0.
        """
        sample = self.samples[index]
        path = str(self.paths[sample["shard"]])
        photo = ShardPhoto(path, int(sample["photo"]) * BLOCK, int(sample["photo_size"]))
        place = int(sample["text"]) * BLOCK
        try:
            caption = _caption(_read(path, place, int(sample["text_size"])), bool(sample["is_json"]))
        except (ValueError, RecursionError) as error:
            if not self.skip_damaged:
                raise DataError(f"{path}, byte {place}: the caption cannot be read ({error}); fetch the shard again.") from None
            caption = ""
        words = clean_caption(caption) if self.clean else caption.strip()
        return Example((photo,), ((Turn(self.question, words),),) if words else ())


def find_shards(folder: Path, pattern: str) -> list[Path]:
    """Shards of `folder` by a pattern with `*`, `?`, and braces `{a,b}` or `{00000..01255}`, in order.

    Raises:
        DataError: there is no such folder, or nothing fits, or a name without `*` or `?` is missing.
        ConfigurationError: the pattern is no text.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ConfigurationError(f"shards is a pattern such as *.tar or {{00000..01255}}.tar, not {pattern!r}")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; put the shards there or give their folder.")
    found: list[Path] = []
    for name in _expand(pattern):
        here = sorted(folder.glob(name)) if glob.has_magic(name) else [folder / name] * (folder / name).is_file()
        if not here:
            raise DataError(f"There is no shard {name} in {folder}; fetch it, or change the option 'shards', which is {pattern!r}.")
        found += here
    return found


def _expand(pattern: str) -> Iterator[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(braces[1])
    choices = braces[1].split(",")
    if numbers is not None:
        first, last = numbers.groups()
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    for choice in choices:
        yield from _expand(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _split(name: str) -> tuple[str, str]:
    """Key and ending of a member: a sample's files share all up to the first point of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, point, ending = file.partition(".")
    return folder + slash + key, (point + ending).lower()


def _members(path: Path, damaged: list[str]) -> Iterator[tarfile.TarInfo]:
    """The whole files of a tar archive; one that is none, or breaks off (which tarfile passes over in silence), is added to `damaged`."""
    try:
        with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            size = path.stat().st_size
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # they would be kept, all of them
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("it breaks off")
                if member.isreg() and not member.issparse():
                    yield member
            raw.seek(tar.offset)
            if raw.read(BLOCK) != tarfile.NUL * BLOCK:
                raise tarfile.ReadError(f"it breaks off or is damaged at byte {tar.offset}")
    except (tarfile.TarError, EOFError) as error:
        damaged.append(f"{path} ({error})")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions and the disk.") from None


def _read(path: str, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); it was there when the data set was opened.") from None


def _caption(data: bytes, is_json: bool) -> str:
    """The caption; none (`null`, or no such key) is an empty text. Raises ValueError where the bytes are no JSON or no text."""
    if not is_json:
        return data.decode("utf-8")
    content = json.loads(data)
    caption: Any = content.get("caption", "") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(caption, str | None):
        raise ValueError("it holds no text under 'caption'")
    return caption or ""


def _load_index(path: Path, stamp: np.ndarray) -> np.ndarray | None:
    try:
        with path.open("rb") as file:
            kept = np.load(file, allow_pickle=False)
            samples: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return samples if samples.dtype == SAMPLE and np.array_equal(kept, stamp) else None


def _save_index(path: Path, stamp: np.ndarray, samples: np.ndarray) -> None:
    """Written beside and then moved, so that another process never reads half of it."""
    beside = path.with_name(f"{path.name}.{os.getpid()}-{random.randrange(1 << 32):08x}")
    try:
        with beside.open("wb") as file:
            np.save(file, stamp, allow_pickle=False)
            np.save(file, samples, allow_pickle=False)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(f"The index {path} cannot be written ({error.strerror}); choose another place in the option 'index'.") from None
