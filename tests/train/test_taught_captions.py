"""The teacher of captions: what it expects comes from photos that look alike, never from the photo's own captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from salticid.data.records import CaptionedPhoto
from salticid.errors import DataError
from salticid.scorers.captions import CiderD
from salticid.train.taught_answers import likeness
from salticid.train.taught_captions import RIDGE, CaptionTeacher, _kept_aside, ranked_above_others, read_teacher, see, write_teacher

DOGS = [(f"A {colour} dog runs on the grass.", f"The {colour} dog is running.") for colour in ("black", "brown", "white", "small")]
BOATS = [(f"A {colour} boat sails on the sea.", f"The {colour} boat is at sea.") for colour in ("red", "blue", "old", "long")]
REFERENCES = [*DOGS, *BOATS]


def features(seed: int = 0) -> torch.Tensor:
    """(8, 16): of two kinds of photos, each with a little of its own."""
    chance = torch.Generator().manual_seed(seed)
    kinds = torch.randn(2, 16, generator=chance).repeat_interleave(4, dim=0)
    return kinds + 0.2 * torch.randn(8, 16, generator=chance)


def test_captions_of_what_looks_alike_score_higher() -> None:
    teacher = CaptionTeacher(REFERENCES, features())
    for number, own in enumerate(REFERENCES):
        dog, boat = teacher.score(["A dog runs on the grass.", "A boat sails on the sea."], own)
        assert (dog > boat) == (number < 4)
    mixed = [number for pair in zip(range(4), range(4, 8), strict=True) for number in pair]
    assert ranked_above_others(teacher, [REFERENCES[number] for number in mixed]) > 0.75


def test_a_photos_own_captions_have_no_part_in_its_scores() -> None:
    changed = [("A purple dog sleeps in a chair.", "Some dog is purple."), *REFERENCES[1:]]
    teacher = CaptionTeacher(changed, features())
    assert teacher.score(["purple chair"], changed[0]) == [pytest.approx(0.0)]
    assert teacher.score(["purple chair"], changed[1])[0] > 0.05


def test_weights_are_those_of_leaving_the_photo_out() -> None:
    """Against the ridge fitted anew without the photo; the rest of the weights goes to the mean."""
    like = likeness(features()).double()
    others = torch.arange(1, 8)
    direct = torch.linalg.solve(like[1:, 1:] + RIDGE * torch.eye(7, dtype=torch.float64), like[1:, 0])
    direct += (1 - direct.sum()) / 7
    weights = _kept_aside(like.float())[0]
    torch.testing.assert_close(weights[others].double(), direct, atol=1e-5, rtol=1e-4)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_where_all_look_the_same_the_score_is_the_mean_over_the_others() -> None:
    """With equal weights what is left is CIDEr-D: against references of one length, without words said twice."""
    references = [(words,) for words in ("red dog runs far", "red cat runs far", "blue dog sits here", "old dog runs far")]
    teacher = CaptionTeacher(references, torch.eye(4))
    scorer = CiderD(references, mark_end=True)
    told = teacher.score(["red dog runs far"], references[0])[0]
    direct = sum(scorer.score("red dog runs far", reference) for reference in references[1:]) / 3
    assert told == pytest.approx(direct, rel=1e-4)


def test_saying_a_word_again_gains_nothing() -> None:
    teacher = CaptionTeacher(REFERENCES, features())
    once, again = teacher.score(["A dog runs on the grass.", "A dog dog dog runs on the grass."], DOGS[0])
    assert again < once


def test_a_photo_is_found_by_its_captions() -> None:
    teacher = CaptionTeacher(REFERENCES, features())
    assert teacher.knows(list(DOGS[0]))
    assert not teacher.knows(("Another photo.",))


@pytest.mark.parametrize(
    ("references", "seen", "reason"),
    [([("One.",)], 1, "at least 2"), (REFERENCES, 7, "features of 7 photos, captions of 8")],
)
def test_what_cannot_be_compared_is_refused(references: list[tuple[str, ...]], seen: int, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        CaptionTeacher(references, torch.randn(seen, 16))


def test_written_and_read_it_scores_the_same(tmp_path: Path) -> None:
    photos = [CaptionedPhoto(tmp_path / f"{number}.jpg", captions) for number, captions in enumerate(REFERENCES)]
    rounded = features().half().float()
    write_teacher(tmp_path, photos, rounded)
    caption = ["A dog on the grass."]
    assert read_teacher(tmp_path).score(caption, DOGS[1]) == pytest.approx(CaptionTeacher(REFERENCES, rounded).score(caption, DOGS[1]))


def test_a_damaged_folder_is_told_of_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"captions\.json"):
        read_teacher(tmp_path)
    write_teacher(tmp_path, [CaptionedPhoto(tmp_path / "a.jpg", captions) for captions in REFERENCES], features())
    (tmp_path / "features.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="salticid data captions"):
        read_teacher(tmp_path)


def test_a_tower_sees_mean_and_maximum(tiny_model_folder: Path, tmp_path: Path) -> None:
    photos = []
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{number}.png")
        photos.append(CaptionedPhoto(tmp_path / f"{number}.png", (colour,)))
    seen = see(tiny_model_folder, photos)
    width = seen.shape[1] // 2
    assert seen.shape[0] == 3
    assert (seen[:, width:] >= seen[:, :width] - 1e-2).all()
    assert not torch.equal(seen[0], seen[1])
