"""Some of a data set's photos, so that one stage learns from photos that another never saw."""

from __future__ import annotations

from typing import Any

from salticid.data.conversation import Example, Source
from salticid.data.mixture import shuffled
from salticid.errors import ConfigurationError

WHOLE = (0.0, 1.0)
_KEY = 0


class Part:
    """The examples of `source` from the share `start` to the share `end` of a fixed shuffle, as a data set of its own.

    Parts that meet (0 to 0.6 and 0.6 to 1) have no example in common and leave none out; the shuffle depends on the data set's size alone.

    Raises:
        ConfigurationError: not 0 <= start < end <= 1, or no example lies between them.
    """

    def __init__(self, source: Source, start: float, end: float) -> None:
        if not 0 <= start < end <= 1:
            raise ConfigurationError(f"part [{start}, {end}] is none of a data set; give two shares between 0 and 1, the smaller first")
        size = len(source)
        self.source = source
        self.chosen = [shuffled(place, size, _KEY) for place in range(round(start * size), round(end * size))]
        if not self.chosen:
            raise ConfigurationError(f"part [{start}, {end}] of {size} photos holds none; widen it")

    def __len__(self) -> int:
        return len(self.chosen)

    def example(self, index: int, seed: int) -> Example:
        """The example at `index` of this part, as the whole data set gives it."""
        return self.source.example(self.chosen[index], seed)

    @property
    def photos(self) -> list[Any]:
        """What the data set knows of each photo of this part; `AttributeError` where it keeps no such list."""
        records = self.source.photos  # type: ignore[attr-defined]
        return [records[index] for index in self.chosen]
