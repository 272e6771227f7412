"""What readers of published lists share: rows of one or more JSON files, each an example about one photo or none."""

from __future__ import annotations

import logging
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from salticid.data.clean import clean
from salticid.data.conversation import Example, Turn
from salticid.data.datasets.files import read_json
from salticid.data.datasets.rows import PackedRows, iterate_rows
from salticid.data.options import check_names, check_share
from salticid.data.tasks import POOLS, instruction
from salticid.errors import DataError

logger = logging.getLogger(__name__)

COCO_2014 = "../coco2014/train2014"
"""Where the photos of COCO's 2014 training set lie beside a data set that is about them."""

TAKES_TEXT = {task: "{}" in pool[0] for task, pool in POOLS.items()}
NUMBER = (int, float)
TEXT_OR_NUMBER = (str, int)
LIST = (list,)
TEXT = (str,)


class Listing(ABC):
    """A list of rows, each an example.

    A kind says in `annotations`, `images` and `keys` where its file and its photos lie and which keys a row must hold, in `keep` what
    is kept of a row, and in `speak` what is said about its photo.

    Args:
        folder: of the data set; the other paths start there.
        annotations: the file, or several whose rows are put together; `.json`, or `.jsonl` with one row on each line.
        images: folder of the photos.
        skip_missing: greatest share of rows (0 to 1) that may be left out because their photo is missing.

    Raises:
        DataError: a file is missing, empty or damaged, a row lacks a key, or more photos are missing than may be.
        ConfigurationError: an option has no valid value.
    """

    annotations: ClassVar[str | None]
    images: ClassVar[str] = "."
    keys: ClassVar[Mapping[str, tuple[type, ...]]]

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | Sequence[str] | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
    ) -> None:
        check_share("skip_missing", skip_missing)
        names = check_names("annotations", self.annotations if annotations is None else annotations)
        self.files = [Path(folder) / name for name in names]
        self.photo_folder = Path(folder) / (self.images if images is None else images)
        if not Path(folder).is_dir():
            raise DataError(f"There is no folder {folder}; put the data set there or give its folder.")
        self.rows = PackedRows()
        self.skipped = 0
        for path in self.files:
            self._read(path, skip_missing)
        if self.skipped:
            logger.warning("%s: %d rows left out, their photos are missing", self.files[0], self.skipped)

    def _read(self, path: Path, skip_missing: float) -> None:
        photos, kept, missing, first_missing = PhotoFolder(self.photo_folder), 0, 0, ""
        for number, row in enumerate(self.entries(path)):
            check_row(row, self.keys, number, path)
            for record in self.keep(row, f"Row {number} of {path}"):
                kept += 1
                absent = [name for name in names_of(record) if name not in photos]
                if absent:
                    missing, first_missing = missing + 1, first_missing or absent[0]
                else:
                    self.rows.append(record)
        if not kept:
            raise DataError(f"{path} has no rows that can be used; fetch the file again or check the options.")
        if missing > skip_missing * kept or missing == kept:
            raise DataError(
                f"{missing} of the {kept} rows of {path} lack their photo, such as {first_missing} in {self.photo_folder}; "
                f"put the photos there, check the options of the data set, or raise skip_missing above {missing / kept:.3g}."
            )
        self.skipped += missing

    def entries(self, path: Path) -> Iterable[Any]:
        """The rows of a file, one by one."""
        return iterate_rows(path)

    @abstractmethod
    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        """Records made of a row, in JSON's types: the photo's file (or a list of several, or null), then whatever `speak` needs.

        `name` says where the row stands, for errors.
        """

    @abstractmethod
    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        """The conversation about a record's photo; whatever is drawn is drawn by `chance`."""

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, seed: int) -> Example:
        """The row at `index`, with wording drawn by `seed`."""
        record = self.rows[index]
        turns = tuple(self.speak(record, random.Random(f"{seed}/{index}")))
        photos = tuple(self.photo_folder / name for name in names_of(record))
        return Example(photos, (turns,) if any(turn.answer for turn in turns) else ())


class CleanListing(Listing):
    """A listing whose words upstream rewords; `clean=False` keeps them as they were written."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | Sequence[str] | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        clean: bool = True,
    ) -> None:
        self.cleans = clean
        super().__init__(folder, annotations, images, skip_missing)

    def tidy(self, text: str) -> str:
        """The text in upstream's wording, where that is wanted."""
        return clean(text) if self.cleans else text.strip()

    def turn(self, task: str, about: str, answer: str, chance: random.Random) -> Sequence[Turn]:
        """One turn with the task's words drawn by `chance`; none where nothing is left of what the task is about."""
        if TAKES_TEXT[task] and not about:
            return ()
        return (Turn(instruction(task, about, chance), self.tidy(answer)),)


class PhotoFolder:
    """Which photos a folder holds; each of its subfolders is listed once, so that a million rows ask for a million names cheaply."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        parent, _, file = name.rpartition("/")
        if parent not in self._listed:
            folder = self.root / parent if parent or not name.startswith("/") else Path("/")
            self._listed[parent] = frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()
        return file in self._listed[parent]


def names_of(record: list[Any]) -> list[str]:
    """Files of a record's photos."""
    return [] if record[0] is None else [record[0]] if isinstance(record[0], str) else record[0]


def check_row(row: Any, keys: Mapping[str, tuple[type, ...]], number: int, path: Path) -> None:
    """Raises DataError where a row is no mapping, or lacks a key, or holds another type there than one of `keys`."""
    if not isinstance(row, dict):
        raise DataError(f"Row {number} of {path} is no mapping but {type(row).__name__}; fetch the file again or check 'annotations'.")
    for key, types in keys.items():
        if key not in row:
            raise DataError(f"Row {number} of {path} lacks {key!r}; it has {', '.join(row) or 'nothing'}. Is this the right file?")
        if not isinstance(row[key], types) or isinstance(row[key], bool):
            wanted = " or ".join(kind.__name__ for kind in types)
            raise DataError(f"Row {number} of {path}: {key!r} is {type(row[key]).__name__}, not {wanted}; correct it or fetch it again.")


def entries_below(path: Path, key: str) -> Iterable[Any]:
    """The list under `key` of a file that holds a mapping; raises DataError where there is none."""
    content = read_json(path.parent, path.name)
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list under {key!r}; fetch the file again or check the option 'annotations'.")
    return rows
