"""Captions say what is on a photo, queries tell where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("pydantic", reason="needs the extra 'train'")

from salticid.data.boxes import Region
from salticid.data.datasets.photo_tasks import PhotoTasks
from salticid.data.datasets.told import with_told, write_told
from salticid.data.records import Box, CaptionedPhoto
from salticid.errors import ConfigurationError, DataError, ImageError
from salticid.train import told_boxes
from salticid.train.told_boxes import single_things, tell_boxes

KINDS = ["dog", "frisbee", "person"]


def photo(*captions: str, name: str = "a.png") -> CaptionedPhoto:
    return CaptionedPhoto(Path(name), captions)


def test_a_thing_counts_that_two_captions_name_and_none_in_the_plural() -> None:
    assert single_things(photo("a dog runs", "the brown dog", "a frisbee"), KINDS) == {"dog": "dog"}
    assert single_things(photo("a dog runs", "two dogs", "a dog"), KINDS) == {}
    assert single_things(photo("a cat sleeps", "a cat"), KINDS) == {}, "no boxes of cats"
    assert single_things(photo("a boy with a dog", "a boy", "a dog", "a boy"), KINDS) == {"boy": "person", "dog": "dog"}


class Told:
    """A Q-Former that sees a dog at the left and a person at the right of every photo, and no frisbee."""

    BOXES = ((0.0, 0.2, 0.5, 0.8), (0.0, 0.0, 1.0, 1.1), (0.5, -0.1, 1.0, 1.0))
    PRESENT = (0.9, 0.01, 0.8)
    box_head: Any = object()

    def __init__(self) -> None:
        self.config: Any = type("Config", (), {"qformer": type("Sizes", (), {"max_position_embeddings": 12})})

    def eval(self) -> Told:
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def embed_texts(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.eye(len(KINDS))

    def tell(self, features: torch.Tensor, names: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        photos = len(features)
        return torch.tensor(self.BOXES).expand(photos, -1, -1), torch.tensor(self.PRESENT).expand(photos, -1)


@pytest.fixture
def qformer(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(
        told_boxes,
        "load_qformer",
        lambda folder: (told, lambda images, return_tensors: {"pixel_values": torch.zeros(len(images), 1)}, None),
    )
    monkeypatch.setattr(told_boxes, "tokenize_captions", lambda *_: (torch.zeros(3, 1), torch.ones(3, 1)))
    monkeypatch.setattr(told_boxes, "read_photo", lambda path: Image.new("RGB", (4, 4)))
    return told


def test_each_thing_gets_its_box_where_anything_is(qformer: Told) -> None:
    photos = [
        photo("a man and a dog", "a man", "a dog", name="0.png"),
        photo("nothing here", "nothing", name="1.png"),
        photo("a frisbee", "a frisbee", name="2.png"),
        photo("a man and a boy", "a man", "a boy, a man", name="3.png"),
    ]
    told = dict(tell_boxes(Path("q"), photos, KINDS))
    assert [path.name for path in told] == ["0.png", "3.png"], (
        "of photos that nothing is told of, and of things that are hardly there, nothing"
    )
    people = {"man", "person"}
    assert {box.label if box.label == "dog" else "human" for box in told[Path("0.png")]} == {"dog", "human"}
    (dog,) = (box for box in told[Path("0.png")] if box.label == "dog")
    assert (dog.left, dog.top, dog.right, dog.bottom) == pytest.approx((0.0, 0.2, 0.5, 0.8), abs=1e-3)
    (human,) = told[Path("3.png")]
    assert (human.top, human.bottom) == (0.0, 1.0), "cut off at the photo's edges"
    assert human.label in people, "two words for whoever stands in one box give one box"
    called = {tell_one(name) for name in map(str, range(20))}
    assert called == people


def test_a_photo_that_cannot_be_read_is_passed_over(
    qformer: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read(path: Path) -> Image.Image:
        if "bad" in path.name:
            raise ImageError(f"{path} is no photo")
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(told_boxes, "read_photo", read)
    monkeypatch.setattr(told_boxes, "BATCH", 2)
    photos = [photo("a dog", "a dog", name=name) for name in ("bad.png", "worse_bad.png", "0.png", "1.png", "bad2.png")]
    told = dict(tell_boxes(Path("q"), photos, KINDS))
    assert [path.name for path in told] == ["0.png", "1.png"]
    assert "passed over photo 3 of at most 100: bad2.png is no photo" in caplog.text
    with pytest.raises(DataError, match=r"3 photos could not be read, 2 may be \(max_unreadable\); the last: bad2.png is no photo"):
        list(tell_boxes(Path("q"), photos, KINDS, max_unreadable=2))


def tell_one(name: str) -> str:
    ((_, boxes),) = tell_boxes(Path("q"), [photo("a man", "a man", name=name)], KINDS)
    return boxes[0].label


def test_what_cannot_be_told_is_refused(qformer: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no caption of 1 photos names anything of which there are boxes"):
        next(tell_boxes(Path("q"), [photo("a cat")], KINDS))
    qformer.box_head = None
    with pytest.raises(ConfigurationError, match="the queries of q know no boxes and names"):
        next(tell_boxes(Path("q"), [photo("a dog", "a dog")], KINDS))


def test_told_boxes_are_asked_for(data_folder: Path, tmp_path: Path) -> None:
    plain = PhotoTasks(data_folder / "flickr8k", reader="flickr8k", tasks=["caption"])
    first = plain.photos[0]
    write_told(tmp_path, {first.path.name: [Region(0.1, 0.2, 0.5, 0.60004, "boy")]})
    source = PhotoTasks(data_folder / "flickr8k", reader="flickr8k", tasks=["refer", "caption"], turns=6, boxes=str(tmp_path))
    assert len(source) == 1
    assert source.photos[0].objects[0] == Box("boy", 0.1, 0.2, pytest.approx(0.4), pytest.approx(0.4), False)
    said = {turn.answer for (turn,) in source.example(0, 1).conversations}
    assert "{<10><20><50><60>}" in said
    assert len(said) > 1, "captions are still there"
    windows = PhotoTasks(data_folder / "flickr8k", reader="flickr8k", tasks=["refer"], turns=1, boxes=str(tmp_path), window=0.5)
    assert len({windows.example(0, seed).conversations for seed in range(20)}) > 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no boxes by photo; make it again with: salticid data boxes"),
        ('{"a.png": [["boy", 0, 0, 1]]}', r"the boxes of .* are not all \[name, left, top, right, bottom\]"),
        ('{"elsewhere.png": []}', "of 1 photos, of which this data set has none"),
        ("{", "is not valid JSON"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(DataError, match=message):
        with_told([photo("a dog")], tmp_path)


def test_boxes_are_for_photos_with_captions_alone(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cutouts and boxes are for photos of the reader flickr8k, not of coco"):
        PhotoTasks(data_folder / "coco", boxes=str(tmp_path))
    with pytest.raises(ConfigurationError, match="cutouts would hide what the boxes are of"):
        PhotoTasks(data_folder / "flickr8k", reader="flickr8k", boxes=str(tmp_path), cutouts=str(tmp_path))
