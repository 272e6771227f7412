"""Recall at k against matrices whose answer can be read off."""

from __future__ import annotations

import pytest
import torch

from salticid.errors import DataError
from salticid.scorers.retrieval import chance, recall

# Two captions of photo 0, three of photo 1, one of photo 2.
OWNERS = torch.tensor([0, 0, 1, 1, 1, 2])
SCORES = torch.tensor(
    [
        [0.1, 0.9, 0.3, 0.2, 0.8, 0.0],  # best is its own second caption
        [0.7, 0.6, 0.5, 0.1, 0.2, 0.4],  # two of another's captions stand before its own best
        [0.6, 0.5, 0.4, 0.3, 0.2, 0.1],  # its only caption comes last
    ]
)


def test_a_matrix_by_hand() -> None:
    found = recall(SCORES, OWNERS, ks=(1, 2, 3, 6))
    assert [found[f"image_to_text_r{k}"] for k in (1, 2, 3, 6)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    # Places of the right photo by text: 3, 1, 1, 3, 3 (behind a tie), 2.
    assert [found[f"text_to_image_r{k}"] for k in (1, 2, 3)] == pytest.approx([2 / 6, 3 / 6, 1])


def test_ties_count_against_the_model() -> None:
    nothing = recall(torch.zeros(3, 6), OWNERS, ks=(1, 3))
    assert (nothing["image_to_text_r1"], nothing["text_to_image_r1"], nothing["text_to_image_r3"]) == (0, 0, 1)
    assert recall(torch.zeros(2, 4), torch.tensor([0, 0, 1, 1]), ks=(2, 3)) == {
        "image_to_text_r2": 0,
        "image_to_text_r3": 1,
        "text_to_image_r2": 1,
        "text_to_image_r3": 1,
    }


def test_a_perfect_model() -> None:
    own = (torch.arange(3)[:, None] == OWNERS).float()
    assert set(recall(own, OWNERS).values()) == {1.0}
    assert recall(SCORES, OWNERS, (1,), to_photo_IT=own)["text_to_image_r1"] == 1
    assert recall(SCORES, OWNERS, (1,), to_photo_IT=own)["image_to_text_r1"] == pytest.approx(1 / 3)


def test_chance_is_what_random_scores_give() -> None:
    torch.manual_seed(0)
    ks = (1, 2, 5)
    tries = [recall(torch.rand(3, 6), OWNERS, ks) for _ in range(3000)]
    for name, expected in chance(OWNERS, 3, ks).items():
        assert sum(one[name] for one in tries) / len(tries) == pytest.approx(expected, abs=0.02)
    assert chance(torch.arange(1000).repeat_interleave(5), 1000)["image_to_text_r1"] == pytest.approx(0.001)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="3 photos and 6 texts, but photos are named for"):
        recall(SCORES, OWNERS[:5])
    with pytest.raises(DataError, match="some photos have no text"):
        recall(SCORES, torch.tensor([0, 0, 1, 1, 1, 1]))
    with pytest.raises(DataError, match="the model has diverged"):
        recall(SCORES / 0 * 0, OWNERS)
