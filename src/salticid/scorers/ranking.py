"""How well scores put what is true first."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_average_precision(scores_PW: Tensor, true_PW: Tensor, least: int = 1) -> float:
    """Mean over labels W of the average precision of their ranking of photos P; labels true of fewer than `least` photos do not count.

    Average precision is the mean, over the photos that a label is true of, of the share of true ones among those ranked as high or
    higher (as in PASCAL VOC since 2010, without interpolation). Between photos of equal score the earlier stands first. 0 without labels.
    """
    counted = true_PW.sum(dim=0) >= max(least, 1)
    if not counted.any():
        return 0.0
    order_PW = scores_PW[:, counted].argsort(dim=0, descending=True, stable=True)
    hit_PW = true_PW[:, counted].gather(0, order_PW).double()
    precision_PW = hit_PW.cumsum(dim=0) / torch.arange(1, len(hit_PW) + 1).unsqueeze(1)
    return float(((precision_PW * hit_PW).sum(dim=0) / hit_PW.sum(dim=0)).mean())
