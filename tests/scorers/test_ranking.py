"""Mean average precision by hand."""

from __future__ import annotations

import pytest
import torch

from salticid.scorers.ranking import mean_average_precision


def test_average_precision_is_the_mean_precision_at_each_true_photo() -> None:
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.1]])
    assert mean_average_precision(scores, torch.tensor([[True], [False], [True], [False]])) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision(-scores, torch.tensor([[True], [False], [True], [False]])) == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_labels_of_too_few_photos_do_not_count() -> None:
    scores = torch.tensor([[3.0, 0.0], [2.0, 1.0], [1.0, 2.0]])
    true = torch.tensor([[True, True], [True, False], [False, False]])
    assert mean_average_precision(scores, true, least=2) == 1.0
    assert mean_average_precision(scores, true) == pytest.approx((1 + 1 / 3) / 2)
    assert mean_average_precision(scores, true, least=3) == 0.0


def test_equal_scores_keep_the_order_of_the_photos() -> None:
    assert mean_average_precision(torch.zeros(4, 1), torch.tensor([[False], [False], [False], [True]])) == 0.25
