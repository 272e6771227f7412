"""A teacher answers from photos that look alike, never from the photo itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salticid.data.records import QuestionedPhoto
from salticid.errors import DataError
from salticid.train import taught_answers
from salticid.train.taught_answers import AnswerTeacher, likeness, runs, teach

LEFT = "what is on the left"
KITCHEN, BEDROOM = torch.tensor([9.0, 0.0, 1.0, 0.2]), torch.tensor([0.0, 4.0, 0.1, 1.0])


def photo(number: int, *asked: tuple[str, str]) -> QuestionedPhoto:
    return QuestionedPhoto(Path(f"{number}.png"), asked)


@pytest.fixture
def rooms() -> tuple[list[QuestionedPhoto], torch.Tensor]:
    """Ten kitchens and ten bedrooms in turn; people answer the same question by the kind of room."""
    photos = [photo(n, (LEFT, "bed" if n % 2 else "oven"), (f"what colour is door {n}", "white")) for n in range(20)]
    noise_PD = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    return photos, (torch.stack([BEDROOM if n % 2 else KITCHEN for n in range(20)]) + noise_PD)[:, None]


def test_runs_are_words_and_their_neighbours() -> None:
    assert runs("what is On") == {"<", "what", "is", "on", ">", "< what", "what is", "is on", "on >", "< what is", "what is on", "is on >"}


def test_likeness_is_one_for_the_same_and_does_not_hang_on_scale() -> None:
    features_PD = torch.tensor([[1.0, 4.0, -1.0], [1.0, 4.0, -1.0], [2.0, 0.0, 3.0], [0.5, 1.0, 2.0]])
    like_PP = likeness(features_PD)
    torch.testing.assert_close(like_PP.diagonal(), torch.ones(4))
    torch.testing.assert_close(like_PP[0, 1], torch.tensor(1.0))
    assert like_PP[0, 2] < 0.8
    torch.testing.assert_close(likeness(features_PD * torch.tensor([1.0, 100.0, 1.0])), like_PP, atol=5e-3, rtol=0)


def test_the_answer_is_that_of_photos_that_look_alike(rooms: tuple[list[QuestionedPhoto], torch.Tensor]) -> None:
    teacher = AnswerTeacher(*rooms)
    assert teacher.answer([LEFT, LEFT, "what colour is that door"], torch.tensor([0, 1, 1]), without=[0, 1]) == ["oven", "bed", "white"]


def test_what_networks_see_counts_as_much_as_what_is_compared(
    rooms: tuple[list[QuestionedPhoto], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Sure:
        """Always says "white", as sure as it is told."""

        sureness = 0.3

        def __init__(
            self, even_PND: torch.Tensor, known: list[str], photo_Q: torch.Tensor, answer_Q: torch.Tensor, answers: int, seed: int
        ):
            made.append((len(known), sorted(set(photo_Q.tolist())), answer_Q.tolist(), answers, seed))

        def answer(self, questions: list[str], photo_Q: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 0.0, self.sureness]]).repeat(len(questions), 1)

    monkeypatch.setattr(taught_answers, "Looker", Sure)
    teacher = AnswerTeacher(*rooms, networks=2)
    assert teacher.answers == ["bed", "oven", "white"]
    assert teacher.answer([LEFT], torch.tensor([0]), without=[0, 1]) == ["oven"], "not sure enough"
    assert made == [(36, list(range(2, 20)), [1, 2, 0, 2] * 9, 3, seed) for seed in (0, 1)], "nothing of photos 0 and 1"
    monkeypatch.setattr(Sure, "sureness", 1.0)
    assert teacher.answer([LEFT], torch.tensor([0]), without=[0, 1]) == ["white"]
    assert AnswerTeacher(*rooms, networks=0).answer([LEFT], torch.tensor([0]), without=[0, 1]) == ["oven"]
    assert len(made) == 4, "none where none are asked for"


def test_what_people_answered_about_the_photo_itself_is_not_used(rooms: tuple[list[QuestionedPhoto], torch.Tensor]) -> None:
    photos, features_PND = rooms
    odd = "what stands on the left"
    photos[4] = photo(4, (odd, "zebra"))
    teacher = AnswerTeacher(photos, features_PND)
    assert teacher.answer([odd], torch.tensor([4])) == ["zebra"]
    assert teacher.answer([odd], torch.tensor([4]), without=[4]) == ["oven"]
    (own,) = [told for told in teach(photos, features_PND) if told.photo == 4 and told.question == odd]
    assert (own.answer, own.given) == ("oven", "zebra")


def test_questions_are_borrowed_from_the_photos_most_alike(rooms: tuple[list[QuestionedPhoto], torch.Tensor]) -> None:
    told = list(teach(*rooms, borrowed=3, alike=5))
    for number in range(20):
        mine = [each for each in told if each.photo == number]
        assert [each.question for each in mine if each.given] == [LEFT, f"what colour is door {number}"]
        borrowed = [int(each.question.rsplit(" ", 1)[1]) for each in mine if each.given is None]
        assert len(set(borrowed)) == 3
        assert all(other % 2 == number % 2 and other != number for other in borrowed), "from rooms of its own kind"
    assert told == list(teach(*rooms, borrowed=3, alike=5))
    assert told != list(teach(*rooms, borrowed=3, alike=5, seed=1))


def test_too_few_and_too_many_are_named(rooms: tuple[list[QuestionedPhoto], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    photos, features_PND = rooms
    with pytest.raises(DataError, match="3 photos with questions; the teacher needs 5 at least"):
        list(teach(photos[:3], features_PND[:3]))
    monkeypatch.setattr(taught_answers, "MOST_QUESTIONS", 39)
    with pytest.raises(DataError, match="40 questions; the teacher takes 1 to 39: give it fewer photos"):
        list(teach(photos, features_PND))
