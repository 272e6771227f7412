"""BLIP-2's contrastive loss and its hard negatives, as functions of one similarity matrix; and what keeps queries in their places.

B batch; entry [i, j] of a (B, B) matrix is of photo i and text j. N patches, Q queries, D width of the tower.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


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
