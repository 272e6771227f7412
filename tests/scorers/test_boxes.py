"""Box scorers in both pixel conventions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salticid.errors import ConfigurationError, DataError
from salticid.scorers.boxes import box_accuracy, box_iou


@pytest.mark.parametrize(
    ("second", "edges", "inclusive"),
    [
        ((0, 0, 9, 9), 1.0, 1.0),
        ((5, 0, 14, 9), 36 / 126, 50 / 150),
        ((9, 9, 18, 18), 0.0, 1 / 199),
        ((10, 0, 19, 9), 0.0, 0.0),
        ((30, 30, 40, 40), 0.0, 0.0),
        ((2, 2, 4, 4), 4 / 81, 9 / 100),
    ],
)
def test_iou_in_both_conventions(second: tuple[int, int, int, int], edges: float, inclusive: float) -> None:
    first = (0, 0, 9, 9)
    assert box_iou(first, second) == box_iou(second, first) == pytest.approx(edges)
    assert box_iou(first, second, pixels="inclusive") == pytest.approx(inclusive)


def test_iou_of_empty_boxes_is_zero() -> None:
    assert box_iou((3, 3, 3, 3), (3, 3, 3, 3)) == 0.0


@pytest.mark.parametrize("box", [(0, 0, 9), (5, 0, 4, 9), (0, 5, 9, 4), (0, 0, float("nan"), 9)])
def test_what_is_no_box_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="x1 <= x2"):
        box_iou((0, 0, 1, 1), box)
    with pytest.raises(DataError, match="x1 <= x2"):
        box_accuracy([(0, 0, 1, 1)], [box])


def test_unknown_pixel_rule_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="edges, inclusive"):
        box_iou((0, 0, 1, 1), (0, 0, 1, 1), pixels="half")  # type: ignore[arg-type]


def test_accuracy_needs_more_than_the_threshold() -> None:
    gold = (0, 0, 9, 9)
    half, more = (0, 0, 9, 4), (0, 0, 9, 5)
    assert box_iou(gold, half, pixels="inclusive") == 0.5
    assert box_accuracy([half, more, None, (9, 9, 0, 0)], [gold] * 4).per_item == (0.0, 1.0, 0.0, 0.0)
    assert box_accuracy([half], [gold], threshold=0.4).score == 1.0
    with pytest.raises(DataError, match="1 predictions but 2 references"):
        box_accuracy([None], [gold, gold])


def test_iou_equals_the_upstream_function(shared: Path) -> None:
    recorded = json.loads((shared / "fixtures" / "tinygptv_prompts" / "prompts.json").read_text(encoding="utf-8"))["computeIoU"]
    assert len(recorded) >= 6
    for row in recorded:
        assert box_iou(row["a"], row["b"], pixels="inclusive") == pytest.approx(row["iou"], abs=1e-12)
