"""Captioned photos: each once per epoch with one of its captions, and the tower's features of them on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

pytest.importorskip("pydantic", reason="needs the extra 'train'")

from salticid.data.augment import Augmentation
from salticid.data.records import CaptionedPhoto
from salticid.errors import DataError, ImageError
from salticid.models import SalticidImageProcessor, VisionLanguageConfig
from salticid.models.vision import VisionTower
from salticid.train.captioned import CaptionCollator, CaptionPairs, DrawnPairs, DrawnViews, captioned_photos
from salticid.train.data import TrainingData
from salticid.train.feature_cache import cached_features
from salticid.train.qformer_recipe import CaptionDataRecipe
from salticid.train.recipe import DataRecipe
from salticid.train.tally import Tally

SOURCE = {"kind": "flickr8k", "path": "flickr8k"}


def photos(folder: Path, count: int) -> list[CaptionedPhoto]:
    """Each of its own colour."""
    folder.mkdir(exist_ok=True)
    made = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (30, 20), (number * 20, 255 - number * 20, 7)).save(path)
        made.append(CaptionedPhoto(path, (f"photo {number} here", f"photo {number} again")))
    return made


def pairs(known: list[CaptionedPhoto], length: int, **options: Any) -> CaptionPairs:
    given: dict[str, Any] = {"seed": 3, "augmentation": Augmentation(), "tally": Tally(2), **options}
    return CaptionPairs(known, length, **given)


def test_photos_of_all_sources_once_with_all_their_captions(data_folder: Path) -> None:
    recipe = CaptionDataRecipe.model_validate({"folder": data_folder, "sources": [SOURCE, SOURCE, {"kind": "coco", "path": "coco"}]})
    found = captioned_photos(recipe)
    assert len(found) == 52  # the same photos twice; COCO's here have no captions
    assert found[0].captions == ("A dog number 8 runs on the beach .",)
    with pytest.raises(DataError, match="0 photos have captions"):
        captioned_photos(recipe.model_copy(update={"sources": recipe.sources[2:]}))


def test_answers_serve_as_captions_where_a_recipe_says_so(data_folder: Path) -> None:
    source = {**SOURCE, "options": {"captions": 1, "questions": 0}}
    found = captioned_photos(CaptionDataRecipe.model_validate({"folder": data_folder, "sources": [source], "captions": "answers"}))
    assert found[0].captions == ("A dog number 8 runs on the beach.",)


def test_an_epoch_shows_each_photo_once(tmp_path: Path) -> None:
    data = pairs(photos(tmp_path, 5), 40)
    items = [data[index] for index in range(len(data))]
    for epoch in range(8):
        assert sorted(item["photo"] for item in items[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert len({tuple(item["photo"] for item in items[5 * epoch : 5 * epoch + 5]) for epoch in range(8)}) > 3
    assert all(item["caption"].startswith(f"photo {item['photo']} ") for item in items)
    assert len(Counter(item["caption"] for item in items)) > 7
    again = pairs(photos(tmp_path, 5), 40)
    assert [again[index]["caption"] for index in (31, 2)] == [items[31]["caption"], items[2]["caption"]]


def test_unreadable_photos_give_way_and_are_counted(tmp_path: Path) -> None:
    known = photos(tmp_path, 4)
    known[1].path.write_bytes(b"no photo")
    data = pairs(known, 4)
    assert sorted({data[index]["photo"] for index in range(4)}) == [0, 2, 3]
    assert data.tally.counts["unreadable_photos"] == 1
    for photo in known:
        photo.path.unlink()
    with pytest.raises(DataError, match="photos could not be read, 2 may be"):
        data[0]


@pytest.fixture
def tower() -> VisionTower:
    torch.manual_seed(0)
    vision = {"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64}
    return VisionTower(VisionLanguageConfig(vision_config=vision)).eval()


@torch.no_grad()
def test_cached_features_are_what_the_tower_sees(tmp_path: Path, tower: VisionTower, monkeypatch: pytest.MonkeyPatch) -> None:
    known = photos(tmp_path / "photos", 20)
    paths, processor = [photo.path for photo in known], SalticidImageProcessor.from_preset("efficientnet_lite", size=64)
    features = cached_features(tmp_path / "out", tower, processor, paths)
    assert features.shape == (20, 4, 1280)
    assert features.dtype == np.float16
    for number in (0, 17):  # in the first and in the last batch
        seen = tower(processor([Image.open(paths[number])], return_tensors="pt")["pixel_values"])[0]
        assert_close(torch.from_numpy(np.array(features[number])).float(), seen, rtol=1e-2, atol=1e-2)
    item = pairs(known, 20, features=features)[4]
    assert_close(item["features"], torch.from_numpy(np.array(features[item["photo"]])))

    with monkeypatch.context() as patch:  # a second time nothing is computed
        patch.setattr(VisionTower, "forward", lambda *_: pytest.fail("computed again"))
        assert np.array_equal(cached_features(tmp_path / "out", tower, processor, paths), features)
    next(tower.parameters()).add_(0.1)
    assert not np.array_equal(cached_features(tmp_path / "out", tower, processor, paths), features)
    assert len(list((tmp_path / "out").glob("features-*.npy"))) == 2


@torch.no_grad()
def test_drawn_views_are_cached_with_what_is_true_of_them(data_folder: Path, tmp_path: Path, tower: VisionTower) -> None:
    """Twelve windows of photos with boxes, shown for two epochs and a half."""
    options = {"reader": "coco", "tasks": ["places"], "turns": 1, "window": 0.5}
    source = {"kind": "photo_tasks", "path": "coco", "options": options}
    data = TrainingData(DataRecipe.model_validate({"folder": data_folder, "sources": [source]}), 12, seed=3)
    processor, views = SalticidImageProcessor.from_preset("efficientnet_lite", size=64), DrawnViews(data)
    examples = [data.unopened(number) for number in range(12)]
    paths: Any = [example.images[0] for example in examples]
    given = (tower, processor, paths, views)
    features = cached_features(tmp_path, *given, repr([example.view for example in examples]))
    assert features.shape == (12, 4, 1280)
    cached, opened = DrawnPairs(data, 30, features), DrawnPairs(data, 30)
    for item in (0, 5, 17, 29):
        read, seen = cached[item], opened[item]
        assert (read["caption"], read["photo"]) == (seen["caption"], seen["photo"])
        assert "{<" in read["caption"]
        assert_close(
            read["features"].float(), tower(processor([seen["image"]], return_tensors="pt")["pixel_values"])[0], rtol=1e-2, atol=1e-2
        )
    for epoch in (0, 1):
        assert {cached[epoch * 12 + item]["photo"] for item in range(12)} == set(range(12))
    assert cached_features(tmp_path, *given, "others").shape == features.shape
    assert len(list(tmp_path.glob("features-*.npy"))) == 2  # other views of the same photos are another file


def test_boxes_and_names_out_of_a_text(tiny_model_folder: Path) -> None:
    from transformers import AutoTokenizer

    from salticid.data.caption_text import add_text_branch_tokens, tokenize_captions

    tokenizer = add_text_branch_tokens(AutoTokenizer.from_pretrained(tiny_model_folder))
    texts = ["<p>dog</p> {<10><20><40><60>} <p>cup</p> {<50><50><70><70>}", "<p>cup</p> {<0><0><100><50>}", "a dog {<1><2><3><4>}"]
    collate = CaptionCollator(tokenizer, None, 12, boxed=True)
    batch = collate([{"photo": number, "caption": text, "features": torch.zeros(4, 8)} for number, text in enumerate(texts)])
    assert_close(batch["boxes"][0], torch.tensor([[0.1, 0.2, 0.4, 0.6], [0.5, 0.5, 0.7, 0.7]]))
    assert batch["names"].tolist() == [[1, 0], [0, -1], [-1, -1]]  # cup, dog; a box without a name tells nothing
    assert torch.equal(batch["name_ids"], tokenize_captions(tokenizer, ["cup", "dog"], 12)[0])
    nothing = collate([{"photo": 0, "caption": "a dog", "features": torch.zeros(4, 8)}])
    assert nothing["names"].tolist() == [[-1]]


def test_a_half_written_cache_is_none(tmp_path: Path, tower: VisionTower) -> None:
    known = [photo.path for photo in photos(tmp_path / "photos", 20)]
    known[18].write_bytes(b"no photo")
    with pytest.raises(ImageError, match="18"):
        cached_features(tmp_path / "out", tower, SalticidImageProcessor.from_preset("efficientnet_lite", size=64), known)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cache": True, "flip": True}, "cached features are of one view per photo"),
        ({"cache": True, "crop": 0.9}, "cached features are of one view per photo"),
        ({"sources": [{**SOURCE, "weight": 2}]}, "leave the weights out"),
        ({"drawn": 8}, 'set captions to "drawn", or leave it out'),
        ({"captions": "drawn", "cache": True}, "say in data.drawn how many, or set cache to false"),
        ({"max_tokens": 2}, "greater than or equal to 3"),
    ],
)
def test_data_that_contradict_themselves_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionDataRecipe.model_validate({"sources": [SOURCE], **values})


def test_a_photo_in_an_archive_is_refused(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from salticid.data.conversation import Example
    from salticid.data.datasets.flickr8k import Flickr8k

    monkeypatch.setattr(Flickr8k, "example", lambda *_: Example((b"bytes",), (), ("a dog",)))
    with pytest.raises(DataError, match="one photo file per example"):
        captioned_photos(CaptionDataRecipe.model_validate({"folder": data_folder, "sources": [SOURCE]}))
