"""One frozen record per photo, as the readers give them and the question writers take them. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CaptionedPhoto:
    """A photo that several people described, one sentence each."""

    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuestionedPhoto:
    """A photo with (question, answer) pairs that people wrote."""

    path: Path
    questions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Box:
    """One annotated object; `left`, `top`, `width` and `height` are fractions of the photo's sides."""

    category: str
    left: float
    top: float
    width: float
    height: float
    crowd: bool

    @property
    def area(self) -> float:
        """Share of the photo that the box covers, 0 to 1."""
        return self.width * self.height

    @property
    def right(self) -> float:
        """Right edge as a fraction of the photo's width."""
        return self.left + self.width

    @property
    def center(self) -> float:
        """Horizontal centre as a fraction of the photo's width."""
        return self.left + self.width / 2


def common_area(one: Box, other: Box) -> float:
    """Share of the photo that both boxes cover, 0 to 1."""
    across = min(one.right, other.right) - max(one.left, other.left)
    down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    return max(across, 0.0) * max(down, 0.0)


@dataclass(frozen=True, slots=True)
class BoxedPhoto:
    """A photo with every object of the data set's categories marked, and captions where there are any."""

    path: Path
    captions: tuple[str, ...]
    objects: tuple[Box, ...]
