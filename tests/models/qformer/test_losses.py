"""The contrastive loss against a plain one, and negatives that are never positives."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from salticid.models.qformer.losses import (
    box_loss,
    cell_owners,
    contrastive_loss,
    hard_negatives,
    intersection_over_union,
    locality_loss,
    read_boxes,
    same_photo,
)


def plain_contrastive(logits: list[list[float]], photos: list[int], smoothing: float) -> float:
    """Number by number: every caption of the row's photo is right in equal parts; `smoothing` of the target goes to all alike."""
    size, total = len(photos), 0.0
    for direction in ("to text", "to photo"):
        for row in range(size):
            scores = [logits[row][column] if direction == "to text" else logits[column][row] for column in range(size)]
            norm = math.log(sum(math.exp(score) for score in scores))
            own = [column for column in range(size) if photos[column] == photos[row]]
            for column in range(size):
                target = (1 - smoothing) * (column in own) / len(own) + smoothing / size
                total -= target * (scores[column] - norm)
    return total / (2 * size)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("photos", [[0, 1, 2, 3], [5, 9, 5, 7], [1, 1, 1, 1]])
def test_contrastive_loss_equals_a_plain_one(photos: list[int], smoothing: float) -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 3
    loss = contrastive_loss(logits, same_photo(torch.tensor(photos)), smoothing)
    assert loss.item() == pytest.approx(plain_contrastive(logits.tolist(), photos, smoothing), rel=1e-5)


def test_gradient_pulls_pairs_together_and_others_apart() -> None:
    logits = torch.zeros(3, 3, requires_grad=True)
    contrastive_loss(logits, same_photo(torch.arange(3)), 0.0).backward()
    assert logits.grad is not None
    assert_close(logits.grad.sign(), 1 - 2 * torch.eye(3))


def test_captions_of_one_photo_do_not_push_each_other_away() -> None:
    logits = torch.zeros(3, 3, requires_grad=True)
    contrastive_loss(logits, same_photo(torch.tensor([4, 4, 8])), 0.0).backward()
    assert logits.grad is not None
    assert (logits.grad[:2, :2] < 0).all()
    assert (logits.grad[0, 2], logits.grad[2, 0]) > (0, 0)


@pytest.mark.parametrize("photos", [[0, 1, 2, 3], [7, 7, 3, 7], [1, 2, 2, 1]])
def test_a_hard_negative_is_of_another_photo(photos: list[int]) -> None:
    ids = torch.tensor(photos)
    logits = torch.eye(4) * 1000  # a positive outweighs everything, were it let in
    torch.manual_seed(0)
    for _ in range(200):
        rows, columns = hard_negatives(logits, same_photo(ids))
        assert rows.tolist() == [0, 1, 2, 3]
        assert (ids[rows] != ids[columns]).all()


def test_hard_negatives_are_drawn_in_proportion_to_their_similarity() -> None:
    shares = torch.tensor([0.6, 0.3, 0.1])
    logits = torch.cat([torch.tensor([50.0]), shares.log()]).expand(4, 4)
    torch.manual_seed(0)
    same = same_photo(torch.arange(4))
    drawn = torch.stack([hard_negatives(logits, same)[1][0] for _ in range(3000)])
    assert_close(torch.bincount(drawn, minlength=4)[1:] / 3000, shares, atol=0.03, rtol=0)


def test_a_batch_of_one_photo_has_no_negatives() -> None:
    rows, columns = hard_negatives(torch.randn(3, 3), same_photo(torch.tensor([2, 2, 2])))
    assert len(rows) == len(columns) == 0
    rows, columns = hard_negatives(torch.randn(3, 3), same_photo(torch.tensor([2, 2, 5])))
    assert rows.tolist() == [0, 1, 2]
    assert columns[:2].tolist() == [2, 2]


def test_queries_that_tell_their_cells_lose_nothing() -> None:
    """Sixteen patches, four queries: each tells the mean of two by two patches, less what all photos have in common."""
    features = torch.randn(8, 16, 5, generator=torch.Generator().manual_seed(0)) + 3
    cells = features.view(8, 2, 2, 2, 2, 5).mean(dim=(2, 4)).flatten(1, 2)
    told = cells - cells.mean(dim=0)
    assert locality_loss(told, features) < 1e-10
    assert 0.8 < locality_loss(torch.zeros_like(told), features) < 1  # 7/8: variances are of eight photos
    assert locality_loss(told[:, [1, 0, 3, 2]], features) > 1


def test_a_cell_answers_for_what_covers_it_or_has_its_middle_there() -> None:
    """Four by four cells. The upper left quarter; a small thing in the cell of row 2, column 3; a box that is no box."""
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.8, 0.6, 0.9, 0.7], [0.0, 0.0, 1.0, 1.0]], [[0.3, 0.3, 0.45, 0.72], *[[0.0] * 4] * 2]])
    present = torch.tensor([[True, True, False], [True, False, False]])
    of_first, of_second = cell_owners(boxes, present, side=4)
    assert of_first.view(4, 4).tolist() == [[0, 0, -1, -1], [0, 0, -1, -1], [-1, -1, -1, 1], [-1, -1, -1, -1]]
    # 0.3 to 0.45 is three fifths of a column's width: of row 1 it covers 0.8 of the height, of row 2 0.88, which has its middle, too
    assert of_second.view(4, 4).tolist() == [[-1] * 4, [-1, 0, -1, -1], [-1, 0, -1, -1], [-1] * 4]


def test_of_two_boxes_the_one_that_covers_more_of_the_cell() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.6, 1.0], [0.4, 0.0, 1.0, 1.0]]])
    assert cell_owners(boxes, torch.ones(1, 2, dtype=torch.bool), side=2)[0].tolist() == [0, 1, 0, 1]


def test_overlap_by_hand() -> None:
    some = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 0.4, 0.4]])
    others = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0], [0.4, 0.4, 0.6, 0.6]])
    assert_close(intersection_over_union(some, others), torch.tensor([0.5, 0.0, 0.0]))


def told(boxes_Q4: torch.Tensor, presence_Q: list[float]) -> torch.Tensor:
    """What queries say that are sure of these boxes, whose edges lie on or amid marks: (1, Q, 45)."""
    marks = torch.linspace(0, 1, 11)
    logits = torch.where((boxes_Q4[..., None] - marks).abs() < 0.06, 0.0, -30.0)
    return torch.cat([torch.tensor(presence_Q)[:, None], logits.flatten(1)], dim=1)[None]


def test_boxes_are_read_as_means_over_marks() -> None:
    edges = torch.tensor([[0.1, 0.25, 0.4, 1.0], [0.0, 0.0, 0.05, 0.9]])
    presence, boxes = read_boxes(told(edges, [3.0, -2.0]))
    assert presence.tolist() == [[3.0, -2.0]]
    assert_close(boxes[0], edges, rtol=0, atol=1e-5)


def test_the_right_box_on_the_right_cells_loses_nothing() -> None:
    boxes = torch.tensor([[[0.1, 0.2, 0.4, 0.6]]])
    owners, sure = torch.tensor([[0, -1, 0, -1]]), [20.0, -20.0, 20.0, -20.0]
    right = boxes[0].expand(4, 4).clone()
    assert box_loss(told(right, sure), boxes, owners).item() == pytest.approx(0, abs=1e-4)
    assert box_loss(told(right, [0.0] * 4), boxes, owners).item() == pytest.approx(math.log(2), abs=1e-4)
    lower, elsewhere = right.clone(), right.clone()
    lower[0] = torch.tensor(
        [0.1, 0.2, 0.4, 0.4]
    )  # half as high: of eight edges one has the wrong mark, and one of two boxes overlaps by half
    assert box_loss(told(lower, sure), boxes, owners).item() == pytest.approx(30 / 8 + 0.5 / 2, abs=1e-3)
    elsewhere[1] = 0.8  # where no thing lies, nobody asks for its box
    assert box_loss(told(elsewhere, sure), boxes, owners).item() == pytest.approx(0, abs=1e-4)


def test_an_edge_between_two_marks_is_shared_by_them() -> None:
    boxes, owners = torch.tensor([[[0.1, 0.2, 0.4, 0.65]]]), torch.tensor([[0]])
    lost = box_loss(told(boxes[0], [20.0]), boxes, owners)
    assert lost.item() == pytest.approx(math.log(2) / 4, abs=1e-4)
    assert box_loss(told(torch.tensor([[0.1, 0.2, 0.4, 0.6]]), [20.0]), boxes, owners) > lost + 1


def test_photos_without_boxes_teach_nothing_about_boxes() -> None:
    said = torch.randn(2, 4, 45, generator=torch.Generator().manual_seed(0)).requires_grad_()
    boxes, owners = torch.tensor([[[0.1, 0.2, 0.4, 0.6]]] * 2), torch.tensor([[0, -1, -1, -1], [-1] * 4])
    box_loss(said, boxes, owners).backward()
    assert said.grad is not None
    assert said.grad[0].abs().sum() > 0
    assert said.grad[1].abs().sum() == 0
    assert box_loss(said[1:], boxes[1:], owners[1:]).item() == 0
