"""Boxes as text: written, read back from what a small model may write, clamped and scaled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salticid.data.boxes import Region, encode_box, encode_boxes, from_pixels, parse_boxes
from salticid.errors import ConfigurationError, InputError

edges = st.floats(0, 1)


def corners(region: Region) -> tuple[float, float, float, float]:
    return region.left, region.top, region.right, region.bottom


def test_encode() -> None:
    assert encode_box(Region(0.1, 0.2, 0.3, 1.0)) == "{<10><20><30><100>}"
    region = from_pixels((50, 75.9, 199.5, 300), width=400, height=300)
    assert encode_box(region) == "{<13><25><50><100>}"
    assert encode_box(region, "down") == "{<12><25><49><100>}"
    assert encode_box(Region(0.29, 0.57, 0.58, 1.0), "down") == "{<29><57><58><100>}"  # 0.29 * 100 is 28.999999999999996
    assert (
        encode_boxes("a dog", [Region(0, 0, 0.5, 0.5), Region(0.5, 0.5, 1, 1)])
        == "<p>a dog</p> {<0><0><50><50>}<delim>{<50><50><100><100>}"
    )


@given(edges, edges, edges, edges)
def test_what_is_written_is_read_to_half_a_cell(x1: float, y1: float, x2: float, y2: float) -> None:
    region = from_pixels((x1 * 640, y1 * 480, x2 * 640, y2 * 480), 640, 480)
    (found,) = parse_boxes(encode_box(region))
    assert corners(found) == pytest.approx(corners(region), abs=0.00501)
    assert encode_box(found) == encode_box(region)


@given(st.text(alphabet="{}<>-0123456789 .p/delimabc", max_size=60))
def test_any_text_gives_boxes_on_the_photo_or_none(text: str) -> None:
    for region in parse_boxes(text):
        assert 0 <= region.left <= region.right <= 1
        assert 0 <= region.top <= region.bottom <= 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{<10><20><30><40>}", (0.1, 0.2, 0.3, 0.4)),
        ("it is at { <10> <20> <30> <40> }.", (0.1, 0.2, 0.3, 0.4)),
        ("<10><20><30><40>", (0.1, 0.2, 0.3, 0.4)),
        ("{<10><20><30><40>", (0.1, 0.2, 0.3, 0.4)),
        ("{<30><40><10><20>}", (0.1, 0.2, 0.3, 0.4)),
        ("{<-5><20><130><40>}", (0.0, 0.2, 1.0, 0.4)),
        ("{<7><7><7><7>}", (0.07, 0.07, 0.07, 0.07)),
    ],
)
def test_one_box_in_several_spellings(text: str, wanted: tuple[float, ...]) -> None:
    (region,) = parse_boxes(text)
    assert corners(region) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "text", ["", "a dog", "{}", "{<10><20><30>}", "{<a><b><c><d>}", "{<10><20><><40>}", "10 20 30 40", "{<10>,<20>,<30>,<40>}"]
)
def test_no_box(text: str) -> None:
    assert parse_boxes(text) == []


def test_several_boxes_with_their_phrases() -> None:
    text = (
        "<p>a dog</p> {<1><2><3><4>}<delim>{<5><6><7><8>} and <p>the ball</p>{<9><10><11><12>}, besides {<0><0><1><1>} <p>no box</p> here"
    )
    regions = parse_boxes(text)
    assert [region.label for region in regions] == ["a dog", "a dog", "the ball", ""]
    assert regions[1].left == pytest.approx(0.05)
    assert parse_boxes(encode_boxes("x", regions[:2]))[1].label == "x"


def test_a_malformed_box_does_not_hide_its_neighbours() -> None:
    assert [region.left for region in parse_boxes("{<10><20>}{<30><40><50><60>}<p>{<1><2><3><4>}")] == pytest.approx([0.3, 0.01])


def test_pixels() -> None:
    region = Region(0.1, 0.25, 0.5, 1.0)
    assert region.pixels(640, 480) == (64, 120, 320, 480)
    assert corners(from_pixels((-10, 500, 700, 100), 640, 480)) == pytest.approx((0, 100 / 480, 1, 1))


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="four numbers"):
        from_pixels((1, 2, 3), 10, 10)
    with pytest.raises(InputError, match="four numbers"):
        from_pixels((1, 2, float("nan"), 4), 10, 10)
    for width in (0, -3):
        with pytest.raises(InputError, match="no place"):
            from_pixels((1, 2, 3, 4), width, 10)
    with pytest.raises(InputError, match="no place"):
        Region(0, 0, 1, 1).pixels(0, 10)
    with pytest.raises(ConfigurationError, match="nearest, down"):
        encode_box(Region(0, 0, 1, 1), "up")  # type: ignore[arg-type]
