"""Box scorers: intersection over union in both conventions, and accuracy at a threshold. Boxes are (x1, y1, x2, y2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from salticid.errors import ConfigurationError, DataError
from salticid.scorers.answers import AnswerResult, check_paired

PixelRule = Literal["edges", "inclusive"]
# what a corner counts beyond its coordinate: nothing for edges, its own pixel where the corner is the last pixel inside
_EXTRA = {"edges": 0.0, "inclusive": 1.0}


class Box(NamedTuple):
    """Corners, x1 <= x2 and y1 <= y2, in any one unit."""

    x1: float
    y1: float
    x2: float
    y2: float


def box_iou(first: Sequence[float], second: Sequence[float], pixels: PixelRule = "edges") -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 where both are empty.

    `pixels="edges"` takes corners as coordinates on a plane. `pixels="inclusive"` takes x2 and y2 as the last pixel inside and adds
    1 to each side, as MiniGPT-v2's and TinyGPT-V's `computeIoU` does for RefCOCO: boxes that touch in one corner then overlap.
    Corners in the wrong order and anything but four numbers raise `DataError`.
    """
    if pixels not in _EXTRA:
        raise ConfigurationError(f"unknown pixel rule {pixels!r}: choose one of {', '.join(_EXTRA)}")
    a, b, extra = _checked(first), _checked(second), _EXTRA[pixels]
    width = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1) + extra)
    height = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1) + extra)
    intersection = width * height
    union = _area(a, extra) + _area(b, extra) - intersection
    return intersection / union if union else 0.0


def box_accuracy(
    predictions: Sequence[Sequence[float] | None],
    boxes: Sequence[Sequence[float]],
    threshold: float = 0.5,
    pixels: PixelRule = "inclusive",
) -> AnswerResult:
    """RefCOCO accuracy as MiniGPT-v2 and TinyGPT-V compute it: 1 where IoU > `threshold`, else 0.

    None stands for a reply without a box, and counts as wrong; so does a predicted box whose corners are in the wrong order.
    """
    check_paired(predictions, boxes)
    golds = [_checked(box) for box in boxes]
    hits = [
        float(prediction is not None and _is_ordered(prediction) and box_iou(prediction, gold, pixels) > threshold)
        for prediction, gold in zip(predictions, golds, strict=True)
    ]
    return AnswerResult(score=sum(hits) / len(hits), per_item=tuple(hits))


def _checked(box: Sequence[float]) -> Box:
    if not _is_ordered(box):
        raise DataError(f"box {tuple(box)} is not (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2")
    return Box(*box)


def _is_ordered(box: Sequence[float]) -> bool:
    return len(box) == 4 and box[0] <= box[2] and box[1] <= box[3]


def _area(box: Box, extra: float) -> float:
    return (box.x2 - box.x1 + extra) * (box.y2 - box.y1 + extra)
