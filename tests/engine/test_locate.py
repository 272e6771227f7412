"""Boxes in pixels: how a model is asked, what its answer means, who is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from salticid.data.templates import TEMPLATES
from salticid.engine.load import load
from salticid.engine.locate import PixelBox, boxes_in, locating_question
from salticid.engine.vision_language import VisionLanguage
from salticid.errors import ImageError, InputError

Say = Callable[[str], list[Any]]


@pytest.fixture
def locator(tiny_tasks_folder: Path) -> VisionLanguage:
    return load(tiny_tasks_folder, precision="fp32", device="cpu")


def turned_photo(width: int, height: int) -> bytes:
    """A JPEG stored lying on its side: `width` x `height` once it is upright."""
    file = io.BytesIO()
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (height, width)).save(file, "JPEG", exif=tags)
    return file.getvalue()


def test_the_models_are_asked_as_they_were_trained(locator: VisionLanguage, photos: list[np.ndarray], say: Say) -> None:
    asked = say("{<10><20><30><100>}")
    assert locator.locate(photos[0], " the red\n ball ") == [(5, 8, 15, 40)]  # 50 x 40 pixels
    (prompt,) = asked
    assert prompt.startswith("<|endoftext|>[INST] <Img><image>")
    assert prompt.endswith("<image></Img> [refer] give me the location of the red ball  [/INST]")


def test_edges_have_names(locator: VisionLanguage, photos: list[np.ndarray], say: Say) -> None:
    say("{<0><25><50><75>}")
    (box,) = locator.locate(photos[0], "a cup")
    assert (box.left, box.top, box.right, box.bottom) == (0, 10, 25, 30)


def test_boxes_stand_on_the_upright_photo(locator: VisionLanguage, say: Say) -> None:
    say("{<0><0><100><50>}")
    assert locator.locate(turned_photo(40, 100), "the top") == [(0, 0, 40, 50)]


def test_several_boxes_and_what_small_models_write() -> None:
    text = "<p>a dog</p> {<10><20><30><40>}<delim>{<150><-3><50><60>} and {<1><2>}"
    assert boxes_in(text, 200, 100) == [PixelBox(20, 20, 60, 40), PixelBox(100, 0, 200, 60)]
    assert boxes_in("{<0><0><100><100>}", 1, 1) == [(0, 0, 1, 1)]


@pytest.mark.parametrize("answer", ["", "a dog", "{<10><20><30>}", "10 20 30 40"])
def test_an_answer_without_a_box(locator: VisionLanguage, photos: list[np.ndarray], say: Say, answer: str) -> None:
    say(answer)
    with pytest.raises(InputError, match="no box: this model was not trained to locate") as caught:
        locator.locate(photos[0], "a dog")
    assert f"answered {answer!r}" in str(caught.value)


def test_a_long_answer_is_quoted_in_part() -> None:
    with pytest.raises(InputError) as caught:
        boxes_in("word " * 100, 10, 10)
    assert len(str(caught.value)) < 160


def test_who_knows_tasks() -> None:
    knowing = {name for name, template in TEMPLATES.items() if template.tasks}
    assert knowing == {"tinygpt_v_tasks", "tinygpt_v_tasks_upstream", "tinygpt_v_eval", "tinygpt_v_demo_v2"}
    assert locating_question("tinygpt_v_eval", "cat") == "[refer] give me the location of cat"
    with pytest.raises(InputError, match="its template 'nano' has no tasks; use one that was"):
        locating_question("nano", "cat")


def test_refusals(locator: VisionLanguage, photos: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the phrase is empty"):
        locator.locate(photos[0], " \n")
    with pytest.raises(InputError, match="photos come first"):
        locator.locate("a dog", photos[0])  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="no such photo"):
        locator.locate(tmp_path / "none.jpg", "a dog")
    with pytest.raises(ImageError, match="cannot read a photo from list"):
        locator.locate(photos, "a dog")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown generation option beams"):
        locator.locate(photos[0], "a dog", beams=2)
