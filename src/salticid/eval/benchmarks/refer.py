"""Where is the only object of its kind? On COCO photos held out by photo, as RefCOCO asks and scores (MiniGPT-v2's `[refer]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from salticid.data.boxes import GRID, Region, encode_box, parse_boxes
from salticid.data.datasets.coco import read_photos
from salticid.data.datasets.photo_tasks import lone_objects, region
from salticid.data.tasks import instruction
from salticid.eval.benchmarks.base import Item
from salticid.scorers.boxes import box_accuracy, box_iou

Corners = tuple[float, float, float, float]

WHOLE = Region(0.0, 0.0, 1.0, 1.0)


class ReferObjects:
    """The first box of each answer against the object's, on the grid of 0 to 100: the share above an intersection over union of 0.5,
    and its mean. For models whose template has tasks; others do not know the question."""

    max_new_tokens = 40

    def __init__(self, folder: Path):
        heldout, known = (read_photos(Path(folder) / "coco", split) for split in ("heldout", "train"))
        asked = [(photo.path, box) for photo in heldout for box in lone_objects(photo)]
        self.items = [Item(path, instruction("refer", box.category)) for path, box in asked]
        self.boxes = [_corners(region(box)) for _, box in asked]
        self._kinds = [box.category for _, box in asked]
        self._known: dict[str, list[Region]] = {}
        for photo in known:
            for box in lone_objects(photo):
                self._known.setdefault(box.category, []).append(region(box))

    def score(self, answers: Sequence[str]) -> dict[str, float]:
        found = [_corners(regions[0]) if (regions := parse_boxes(answer)) else None for answer in answers]
        overlaps = [0.0 if box is None else box_iou(box, truth) for box, truth in zip(found, self.boxes, strict=True)]
        return {
            "accuracy_at_0.5": box_accuracy(found, self.boxes).score,
            "mean_iou": fmean(overlaps),
            "with_a_box": sum(box is not None for box in found) / len(found),
        }

    def guesses(self) -> list[str]:
        """The mean box of such objects in the training photos (of all, where there are none), or always the whole photo: whichever of
        the two is right more often there."""
        everything = [box for boxes in self._known.values() for box in boxes]
        means = {kind: _mean(boxes) for kind, boxes in self._known.items()}
        truths = [(kind, _corners(box)) for kind, boxes in self._known.items() for box in boxes]
        by_mean = box_accuracy([_corners(means[kind]) for kind, _ in truths], [box for _, box in truths]).score
        by_whole = box_accuracy([_corners(WHOLE)] * len(truths), [box for _, box in truths]).score
        if by_whole > by_mean:
            return [encode_box(WHOLE)] * len(self.items)
        return [encode_box(means.get(kind, _mean(everything))) for kind in self._kinds]


def _corners(box: Region) -> Corners:
    return box.left * GRID, box.top * GRID, box.right * GRID, box.bottom * GRID


def _mean(boxes: Sequence[Region]) -> Region:
    left, top, right, bottom = (fmean(getattr(box, edge) for box in boxes) for edge in ("left", "top", "right", "bottom"))
    return Region(left, top, right, bottom)
