"""BLIP-2's contrastive loss and its hard negatives, as functions of one similarity matrix; and what keeps queries in their places.

B batch; entry [i, j] of a (B, B) matrix is of photo i and text j. N patches, Q queries, D width of the tower,
K boxes of a photo, S cells along one side of it.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

MARKS = 11
"""Along a side of the photo, between which an edge of a box lies."""
BOX_NUMBERS = 1 + 4 * MARKS
LEAST_SHARE = 0.4
"""Of a cell, that a box must cover for the cell to answer for it, unless its centre lies there."""


def same_photo(photo_ids_B: torch.Tensor) -> torch.Tensor:
    """(B, B), true where text j describes photo i: its own, and other captions of a photo that is in the batch twice."""
    return photo_ids_B[:, None] == photo_ids_B[None, :]


def contrastive_loss(logits_BB: torch.Tensor, same_BB: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Mean of photo-to-text and text-to-photo cross-entropy (BLIP-2, arXiv 2301.12597, section 3.2).

    All captions of one photo share its target equally, as in BLIP's retrieval (arXiv 2201.12086): they are no negatives of each other.
    """
    targets_BB = same_BB.float() / same_BB.sum(dim=1, keepdim=True)  # symmetric, so of use in both directions
    to_text = F.cross_entropy(logits_BB.float(), targets_BB, label_smoothing=label_smoothing)
    to_photo = F.cross_entropy(logits_BB.float().t(), targets_BB, label_smoothing=label_smoothing)
    return (to_text + to_photo) / 2


def hard_negatives(logits_BB: torch.Tensor, same_BB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row that has any, one column drawn among those of other photos, in proportion to the softmax of their logits.

    Returns:
        rows, columns: (R,) each. A row whose whole batch is of its own photo has no negative and is not among them.
    """
    rows_R = (~same_BB).any(dim=1).nonzero().flatten()
    others_RB = logits_BB.detach().float()[rows_R].masked_fill(same_BB[rows_R], -torch.inf)
    if not len(rows_R):
        return rows_R, rows_R
    return rows_R, torch.multinomial(others_RB.softmax(dim=1), 1).flatten()


def locality_loss(told_BQD: torch.Tensor, features_BND: torch.Tensor) -> torch.Tensor:
    """Share of what the cells' features vary by from photo to photo that the queries do not tell: 1 where they tell nothing of it.

    Both grids are square; query by query, row by row, each tells how the mean feature of its cell differs from other photos'. Queries that
    answer for the whole photo lose where things are (Honeybee, arXiv 2312.06742, which gives its connector locality in other ways).
    """
    side, patches = math.isqrt(told_BQD.shape[1]), math.isqrt(features_BND.shape[1])
    grid_BDhw = features_BND.float().transpose(1, 2).unflatten(2, (patches, patches))
    cells_BQD = F.adaptive_avg_pool2d(grid_BDhw, side).flatten(2).transpose(1, 2)
    differences_BQD = cells_BQD - cells_BQD.mean(dim=0)
    return F.mse_loss(told_BQD.float(), differences_BQD) / cells_BQD.var(dim=0).mean().clamp(min=torch.finfo(torch.float32).tiny)


def cell_owners(boxes_BK4: torch.Tensor, present_BK: torch.Tensor, side: int) -> torch.Tensor:
    """Which box each of `side` x `side` cells of the photo answers for (B, side * side); -1 where none lies there.

    The one that covers most of the cell, two fifths at least; and a box whose centre lies in the cell, however small it is.

    Args:
        boxes_BK4: left, top, right and bottom as fractions of the photo's sides; `present_BK` is false where a photo has fewer than K.
    """
    left_BK, top_BK, right_BK, bottom_BK = boxes_BK4.float().unbind(dim=-1)
    covered_SBK, central_SBK = _along(top_BK, bottom_BK, side)
    across_SBK, middle_SBK = _along(left_BK, right_BK, side)
    claims_SSBK = covered_SBK[:, None] * across_SBK[None] + (central_SBK[:, None] & middle_SBK[None])
    most_QB, owners_QB = claims_SSBK.flatten(0, 1).masked_fill(~present_BK, 0.0).max(dim=-1)
    return owners_QB.masked_fill(most_QB < LEAST_SHARE, -1).t()


def _along(low_BK: torch.Tensor, high_BK: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of `side` stretches of one axis (S, B, K): the share that a box covers, and whether the box's centre lies there."""
    stretches_S11 = torch.arange(side, device=low_BK.device)[:, None, None]
    ends_SBK = torch.minimum(high_BK * side, stretches_S11 + 1) - torch.maximum(low_BK * side, stretches_S11)
    centres_BK = ((low_BK + high_BK) / 2 * side).long().clamp(0, side - 1)
    return ends_SBK.clamp(min=0), centres_BK == stretches_S11


def box_loss(told_BQE: torch.Tensor, boxes_BK4: torch.Tensor, owners_BQ: torch.Tensor) -> torch.Tensor:
    """Whether a thing lies on each query's cell, and where its box is; `told_BQE` are the `BOX_NUMBERS` that `read_boxes` reads.

    Cross-entropy, of presence and of each edge's mark, with an edge between two marks shared by them (arXiv 2006.04388); and one minus
    the intersection over union. Photos without any box take no part: nobody said what stands on them.
    """
    boxed_B = (owners_BQ >= 0).any(dim=1)
    if not boxed_B.any():
        return told_BQE.float().sum() * 0
    told_BQE, boxes_BK4, owners_BQ = told_BQE.float()[boxed_B], boxes_BK4.float()[boxed_B], owners_BQ[boxed_B]
    taken_BQ = owners_BQ >= 0
    presence_BQ, guess_BQ4 = read_boxes(told_BQE)
    presence = F.binary_cross_entropy_with_logits(presence_BQ, taken_BQ.float())
    truth_N4 = boxes_BK4.gather(1, owners_BQ.clamp(min=0)[..., None].expand(-1, -1, 4))[taken_BQ]
    overlap = intersection_over_union(guess_BQ4[taken_BQ], truth_N4).mean()
    edges = F.cross_entropy(told_BQE[..., 1:][taken_BQ].view(-1, MARKS), marks(truth_N4).view(-1, MARKS))
    return presence + edges + 1 - overlap


def marks(edges: torch.Tensor) -> torch.Tensor:
    """Edges (..., 4), as fractions of the photo's sides, by their shares of the two marks that each lies between (..., 4, MARKS)."""
    return (1 - (edges[..., None] * (MARKS - 1) - torch.arange(MARKS, device=edges.device)).abs()).clamp(min=0)


def read_boxes(told_BQE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, Q) of a thing's presence, and its box's edges (B, Q, 4): the first number, and the means of four distributions over marks.

    Marks lie a tenth of the photo's side apart, the first and the last on its edges. A number that is told as a distribution is read by
    linear layers more easily than one that is told by its size: the first digit of an edge is the likeliest mark.
    """
    shares_BQ4M = told_BQE[..., 1:].float().unflatten(-1, (4, MARKS)).softmax(dim=-1)
    return told_BQE[..., 0].float(), shares_BQ4M @ torch.linspace(0, 1, MARKS, device=told_BQE.device)


def say_boxes(told_BQE: torch.Tensor) -> torch.Tensor:
    """Of `BOX_NUMBERS` as `read_boxes` reads them, what linear layers can read (B, Q, 4 * MARKS).

    Each mark's share of its edge beyond an even one, as far as a thing is there at all: of empty cells next to nothing.
    """
    shares_BQ4M = told_BQE[..., 1:].unflatten(-1, (4, MARKS)).softmax(dim=-1)
    return ((shares_BQ4M - 1 / MARKS) * told_BQE[..., :1, None].sigmoid()).flatten(-2)


def intersection_over_union(some_N4: torch.Tensor, others_N4: torch.Tensor) -> torch.Tensor:
    """(N,), row by row; nothing for a box whose corners are in the wrong order."""
    least_N2, most_N2 = torch.maximum(some_N4[:, :2], others_N4[:, :2]), torch.minimum(some_N4[:, 2:], others_N4[:, 2:])
    common_N = (most_N2 - least_N2).clamp(min=0).prod(dim=1)
    areas_N = sum((boxes_N4[:, 2:] - boxes_N4[:, :2]).clamp(min=0).prod(dim=1) for boxes_N4 in (some_N4, others_N4))
    return common_N / (areas_N - common_N).clamp(min=torch.finfo(torch.float32).eps)
