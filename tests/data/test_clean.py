from __future__ import annotations

import json
from pathlib import Path

import pytest

from salticid.data.clean import clean

GOLDEN: dict[str, str] = json.loads((Path(__file__).resolve().parents[1] / "goldens/caption_processor.json").read_text())


@pytest.mark.parametrize("text", list(GOLDEN), ids=range(len(GOLDEN)))
def test_equal_to_upstreams_caption_processor(text: str) -> None:
    assert clean(text) == GOLDEN[text]


def test_the_golden_is_the_recording(shared: Path) -> None:
    recorded = json.loads((shared / "fixtures/tinygptv_prompts/prompts.json").read_text())
    assert recorded["caption_processor"] == GOLDEN


def test_edges() -> None:
    assert clean("") == clean(" ...\n\n") == ""
    assert clean("one two three", max_words=2) == "one two"
