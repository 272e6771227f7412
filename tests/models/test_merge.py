"""Image tokens among words, by hand."""

from __future__ import annotations

import pytest
import torch

from salticid.errors import InputError
from salticid.models.merge import merge_image_features, refuse_lone_placeholders, repeat_photos

IMAGE = 9


def test_tokens_go_row_by_row_left_to_right() -> None:
    ids = torch.tensor([[1, IMAGE, IMAGE, 2, IMAGE, IMAGE], [IMAGE, IMAGE, 3, 4, 5, 6]])
    words = torch.zeros(2, 6, 1)
    features = torch.arange(1.0, 7.0).view(3, 2, 1)
    merged = merge_image_features(words, ids, features, IMAGE)
    assert merged[..., 0].tolist() == [[0, 1, 2, 0, 3, 4], [5, 6, 0, 0, 0, 0]]
    assert (words == 0).all()


def test_gradients_reach_words_and_photos_where_they_stand() -> None:
    ids = torch.tensor([[1, IMAGE, 2]])
    words = torch.zeros(1, 3, 2, requires_grad=True)
    features = torch.zeros(1, 1, 2, requires_grad=True)
    (merge_image_features(words, ids, features, IMAGE) * torch.tensor([[[1.0], [10.0], [100.0]]])).sum().backward()
    assert words.grad is not None
    assert features.grad is not None
    assert words.grad[0, :, 0].tolist() == [1, 0, 100]
    assert features.grad.flatten().tolist() == [10, 10]


def test_features_take_the_words_precision() -> None:
    merged = merge_image_features(torch.zeros(1, 1, 2, dtype=torch.bfloat16), torch.tensor([[IMAGE]]), torch.ones(1, 1, 2), IMAGE)
    assert merged.dtype == torch.bfloat16


@pytest.mark.parametrize("placeholders", [1, 3, 5])
def test_a_wrong_number_is_refused_with_both_numbers(placeholders: int) -> None:
    ids = torch.tensor([[1] + [IMAGE] * placeholders])
    with pytest.raises(InputError, match=rf"{placeholders} image placeholders but the photos give 4 image tokens \(2 photos of 2\)"):
        merge_image_features(torch.zeros(1, placeholders + 1, 3), ids, torch.zeros(2, 2, 3), IMAGE)


def test_placeholders_without_photos_are_refused() -> None:
    refuse_lone_placeholders(torch.tensor([[1, 2]]), IMAGE)
    with pytest.raises(InputError, match="1 image placeholders but the photos give 0"):
        refuse_lone_placeholders(torch.tensor([[1, IMAGE]]), IMAGE)


def test_photos_are_repeated_with_their_rows() -> None:
    ids = torch.tensor([[IMAGE, IMAGE, 1, IMAGE, IMAGE], [1, 2, 3, 4, 5], [1, 2, 3, IMAGE, IMAGE]])
    photos = torch.tensor([[10.0], [11.0], [30.0]])
    assert repeat_photos(photos, ids, IMAGE, tokens=2, times=2).flatten().tolist() == [10, 11, 10, 11, 30, 30]
    with pytest.raises(InputError, match="6 image placeholders but the photos give 4 image tokens"):
        repeat_photos(photos[:2], ids, IMAGE, tokens=2, times=2)
