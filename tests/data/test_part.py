from __future__ import annotations

import pytest

from salticid.data.conversation import Example, Turn
from salticid.data.part import Part
from salticid.errors import ConfigurationError


class Numbers:
    def __init__(self, size: int) -> None:
        self.photos = [f"photo{index}" for index in range(size)]

    def __len__(self) -> int:
        return len(self.photos)

    def example(self, index: int, seed: int) -> Example:
        return Example((self.photos[index],), ((Turn(str(index), str(seed)),),))


@pytest.mark.parametrize("size", [2, 7, 100])
def test_parts_that_meet_share_nothing_and_leave_nothing_out(size: int) -> None:
    source = Numbers(size)
    parts = [Part(source, 0, 0.6), Part(source, 0.6, 1)]
    shown = [part.example(index, 5) for part in parts for index in range(len(part))]
    assert sorted(shown, key=lambda example: str(example.images)) == sorted(
        (source.example(index, 5) for index in range(size)), key=lambda example: str(example.images)
    )
    assert [len(part) for part in parts] == [round(0.6 * size), size - round(0.6 * size)]


def test_a_part_is_drawn_from_everywhere_and_always_the_same() -> None:
    source = Numbers(100)
    first = Part(source, 0, 0.5)
    assert first.chosen == Part(Numbers(100), 0, 0.5).chosen
    assert 15 <= sum(index < 50 for index in first.chosen) <= 35
    assert first.photos == [first.example(index, 0).images[0] for index in range(50)]


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1), (0.5, 0.501)])
def test_what_is_no_part_is_refused(start: float, end: float) -> None:
    with pytest.raises(ConfigurationError, match="part"):
        Part(Numbers(10), start, end)


def test_a_source_without_records_has_none_in_part() -> None:
    class Bare(Numbers):
        def __init__(self) -> None: ...

        def __len__(self) -> int:
            return 10

    assert getattr(Part(Bare(), 0, 0.5), "photos", None) is None
