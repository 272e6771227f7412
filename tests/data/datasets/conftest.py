"""Published data sets in miniature."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

PHOTO = "COCO_train2014_000000000009.jpg"


class Published(NamedTuple):
    """A kind's files in miniature: its list and photos, both below the data set's folder, and options that it cannot do without."""

    content: Any
    photos: tuple[str, ...]
    annotations: str
    options: dict[str, Any] = {}  # noqa: RUF012
    beside: dict[str, Any] = {}  # noqa: RUF012


TALK = [
    {"from": "human", "value": "<image>\nWhat is this?"},
    {"from": "gpt", "value": "A Cat."},
    {"from": "human", "value": "What (color)?"},
    {"from": "gpt", "value": "Black."},
]
COCO = (f"../coco2014/train2014/{PHOTO}",)
AOKVQA = {"question": "Why?", "direct_answers": ["Rain", "Rain", "Sun"], "choices": ["Rain", "snow!"], "correct_choice_idx": 1}
BOX = "{<1><2><30><40>}"
INSTANCES = {
    "images": [{"id": 9, "width": 200, "height": 100, "file_name": PHOTO}],
    "annotations": [{"id": 5, "image_id": 9, "bbox": [20.0, 10.0, 100.0, 80.0]}],
}
REFS = [
    {
        "ref_id": 1,
        "ann_id": 5,
        "image_id": 9,
        "split": "train",
        "sentences": [{"raw": "The Left dog!", "sent": "the left dog", "sent_id": 1}],
    },
    {"ref_id": 2, "ann_id": 5, "image_id": 9, "split": "val", "sentences": [{"raw": "dog", "sent": "dog", "sent_id": 2}]},
]
REGIONS = [
    {"region_id": 1, "image_id": 2, "phrase": "A red Ball.", "x": -4, "y": 25, "width": 104, "height": 50},
    {"region_id": 2, "image_id": 2, "phrase": "all of it", "x": 0, "y": 0, "width": 200, "height": 100},
    {"region_id": 3, "image_id": 2, "phrase": "nothing", "x": 0, "y": 0, "width": 0, "height": 100},
]
VG_PHOTOS = [{"image_id": 2, "width": 200, "height": 100, "url": "https://example.org/rak/VG_100K_2/2.jpg"}]

PUBLISHED: dict[str, Published] = {
    "llava": Published([{"id": "1", "image": "a/1.jpg", "conversations": TALK}], ("a/1.jpg",), "mine.json", {"annotations": "mine.json"}),
    "cc_sbu_align": Published({"annotations": [{"image_id": "2", "caption": "A (Big) dog."}]}, ("image/2.jpg",), "filter_cap.json"),
    "llava_conversation": Published([{"id": "000000000009", "conversations": TALK}], COCO, "conversation_58k.json"),
    "llava_detail": Published([{"id": "000000000009", "conversations": TALK}], COCO, "detail_23k.json"),
    "llava_reason": Published([{"id": "000000000009", "conversations": TALK}], COCO, "complex_reasoning_77k.json"),
    "multitask_conversation": Published([{"id": "000000000009", "conversations": TALK}], COCO, "multitask_conversation.json"),
    "unnatural_instruction": Published(
        [{"instances": [{"instruction_with_input": "Add: 1 and 2.", "constraints": "One word.", "output": "Three."}]}],
        (),
        "filtered_unnatural_instruction.json",
    ),
    "refcoco": Published(INSTANCES, ("../../coco2014/train2014/" + PHOTO,), "instances.json", beside={"refs(unc).p": REFS}),
    "invrefcoco": Published(INSTANCES, ("../../coco2014/train2014/" + PHOTO,), "instances.json", beside={"refs(unc).p": REFS}),
    "refvg": Published(
        [{"id": 2, "regions": REGIONS}], ("VG_100K_2/2.jpg",), "region_descriptions.json", beside={"image_data.json": VG_PHOTOS}
    ),
    "flickr_grounded_caption": Published(
        [{"image_id": 7, "grounded_caption": f"<p>A Dog</p> {BOX} runs."}], ("flickr30k-images/7.jpg",), "groundedcaption.json"
    ),
    "flickr_caption_to_phrase": Published(
        [{"image_id": 7, "caption": "A Dog runs.", "output": f"<p>A Dog</p> {BOX}"}], ("flickr30k-images/7.jpg",), "captiontobbox.json"
    ),
    "flickr_object_to_phrase": Published(
        [{"image_id": 7, "phrase": "A Dog", "bbox": f"{BOX}<delim>{BOX}"}], ("flickr30k-images/7.jpg",), "phrasetobbox.json"
    ),
    "coco_caption": Published(
        [{"image": f"train2014/{PHOTO}", "caption": "A Dog runs.", "image_id": "coco_9"}, {"image": "val2014/no.jpg", "caption": "A cat."}],
        COCO,
        "coco_karpathy_train.json",
    ),
    "textcaps_caption": Published(
        {"data": [{"image_id": "00f", "caption_str": "A sign: STOP!"}]}, ("train_images/00f.jpg",), "TextCaps_0.1_train.json"
    ),
    "coco_vqa": Published(
        [{"image": f"train2014/{PHOTO}", "question": "Is it RED?", "answer": ["Yes"] * 9 + ["no"], "question_id": 1}],
        COCO,
        "vqa_train.json",
    ),
    "ok_vqa": Published([{"image": f"train2014/{PHOTO}", "question": "Who?", "answer": ["Me"]}], COCO, "okvqa_train.json"),
    "aok_vqa": Published([{"image": f"train2014/{PHOTO}", **AOKVQA}], COCO, "aokvqa_v1p0_train.json"),
    "gqa": Published(
        [{"image": "2.jpg", "question": "Is it RED?", "answer": "No", "fullAnswer": "No, it is not."}],
        ("images/2.jpg",),
        "train_balanced_questions.json",
    ),
    "ocrvqa": Published(
        {
            "009": {"imageURL": "http://x.org/1.jpg", "questions": ["Who wrote this?"], "answers": ["A. Nin"], "split": 1, "title": "T"},
            "010": {"imageURL": "http://x.org/2.jpg", "questions": ["Who?"], "answers": ["B"], "split": 3, "title": "T"},
        },
        ("images/009.jpg",),
        "dataset.json",
    ),
}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".p":
        path.write_bytes(pickle.dumps(content, protocol=0))
    else:
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Write a kind's files in miniature, with other content where it is given, and return its folder."""

    def make(kind: str, content: Any = None, photos: bool = True) -> Path:
        published = PUBLISHED[kind]
        folder = tmp_path / "data" / "sets" / kind
        write(folder / published.annotations, published.content if content is None else content)
        for name, beside in published.beside.items():
            write(folder / name, beside)
        for photo in published.photos if photos else ():
            path = folder / photo
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 10), "red").save(path)
        return folder

    return make


@pytest.fixture(params=list(PUBLISHED))
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of published list in turn."""
    return str(request.param)


@pytest.fixture
def published() -> dict[str, Published]:
    """The miniature files by kind."""
    return PUBLISHED
