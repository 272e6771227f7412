"""A network that looks where a question points, which an average over the photo's places cannot."""

from __future__ import annotations

import pytest
import torch

from salticid.train import answer_network
from salticid.train.answer_network import DIRECTIONS, SIDE, Looker, even

ASKED = ("what is on the left", "what is on the right")
BED, OVEN = torch.tensor([2.0, -2.0, 1.0]), torch.tensor([-2.0, 2.0, -1.0])


def rooms(photos: int) -> torch.Tensor:
    """Features (P, 2, 3) of rooms whose bed stands left or right, in turn, and the oven on the other side: on average all alike."""
    noise_PND = 0.1 * torch.rand(photos, 2, 3, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.stack([BED, OVEN] if number % 2 else [OVEN, BED]) for number in range(photos)]) + noise_PND


def learn(features_PND: torch.Tensor, photos: int, seed: int = 0) -> Looker:
    """From both questions about each of the first `photos` rooms; answer 0 is the bed, 1 the oven."""
    photo_Q = torch.arange(photos).repeat_interleave(2)
    return Looker(features_PND, ASKED * photos, photo_Q, (photo_Q + torch.arange(2 * photos) + 1) % 2, answers=2, seed=seed)


def test_it_looks_where_the_question_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_network, "ROUNDS", 40)
    likely_QA = learn(rooms(420), 400).answer(ASKED * 20, torch.arange(400, 420).repeat_interleave(2))
    torch.testing.assert_close(likely_QA.sum(dim=1), torch.ones(40))
    assert likely_QA.argmax(dim=1).tolist() == [1, 0, 0, 1] * 10, "in rooms that it has not seen"


def test_words_that_are_new_or_missing_are_answered_too() -> None:
    likely_QA = learn(rooms(20), 20).answer(["What IS on the ceiling", ""], torch.tensor([0, 1]))
    assert likely_QA.shape == (2, 2)
    assert likely_QA.isfinite().all()


def test_the_seed_decides_and_no_other_chance_is_disturbed() -> None:
    state = torch.get_rng_state()
    one, again, other = (learn(rooms(20), 20, seed).answer(ASKED, torch.tensor([0, 0])) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_features_are_made_even_and_places_few() -> None:
    features_PND = torch.randn(30, 49, 400, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 50, 400)
    few_PND = even(features_PND)
    assert few_PND.shape == (30, SIDE**2, DIRECTIONS)
    spread = few_PND.flatten(0, 1).std(dim=0)
    assert spread.min() > 0.5
    assert spread.max() < 1.01
    assert even(features_PND[:, :7]).shape == (30, 7, DIRECTIONS), "what is no square stays as it is"


def test_features_that_never_vary_count_nothing() -> None:
    same_PND = torch.ones(5, 4, 3)
    torch.testing.assert_close(even(same_PND), torch.zeros(5, 4, 3))
