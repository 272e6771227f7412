"""Recall at k between photos and texts, with several texts per photo.

I photos, T texts; Q queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch

from salticid.errors import DataError

KS = (1, 5, 10)


def recall(
    to_text_IT: torch.Tensor, photo_of_text_T: torch.Tensor, ks: Sequence[int] = KS, to_photo_IT: torch.Tensor | None = None
) -> dict[str, float]:
    """Shares of queries that find what they look for among the first k, 0 to 1.

    A photo's own texts are those that name it in `photo_of_text_T`; photo to text counts as found with any one of them, the protocol of
    Karpathy and Fei-Fei (arXiv 1412.2306) for Flickr30k and COCO. Ties count against the model: what scores as high as the right answer
    stands before it, so that a model to which all look alike gets nothing.

    Args:
        to_text_IT: scores by which photos look for texts. to_photo_IT: by which texts look for photos; default, the same.

    Returns:
        `image_to_text_r1`, `text_to_image_r1` and so on, for each k.

    Raises:
        DataError: a photo without text or the other way round, sizes that do not fit each other, or scores that are no numbers.
    """
    to_photo_IT = to_text_IT if to_photo_IT is None else to_photo_IT
    photos, texts = to_text_IT.shape
    if photo_of_text_T.shape != (texts,) or to_photo_IT.shape != to_text_IT.shape:
        raise DataError(f"scores are of {photos} photos and {texts} texts, but photos are named for {tuple(photo_of_text_T.shape)} texts")
    own_IT = torch.arange(photos, device=photo_of_text_T.device)[:, None] == photo_of_text_T
    if not own_IT.any(dim=1).all() or not own_IT.any(dim=0).all():
        raise DataError("some photos have no text, or some texts no photo, among the scored ones; leave them out")
    if to_text_IT.isnan().any() or to_photo_IT.isnan().any():
        raise DataError("some scores are no numbers; the model has diverged")
    ranks = {"image_to_text": _ranks(to_text_IT, own_IT), "text_to_image": _ranks(to_photo_IT.t(), own_IT.t())}
    return {f"{way}_r{k}": (rank < k).double().mean().item() for way, rank in ranks.items() for k in ks}


def chance(photo_of_text_T: torch.Tensor, photos: int, ks: Sequence[int] = KS) -> dict[str, float]:
    """What `recall` gives on average for scores drawn at random: the exact expectation."""
    texts = len(photo_of_text_T)
    own = torch.bincount(photo_of_text_T, minlength=photos).tolist()
    to_text = {k: sum(1 - comb(texts - count, min(k, texts)) / comb(texts, min(k, texts)) for count in own) / photos for k in ks}
    return {f"image_to_text_r{k}": to_text[k] for k in ks} | {f"text_to_image_r{k}": min(k, photos) / photos for k in ks}


def _ranks(scores_QC: torch.Tensor, own_QC: torch.Tensor) -> torch.Tensor:
    """For each query how many wrong candidates stand before its best right one, ties included."""
    best_Q = scores_QC.masked_fill(~own_QC, -torch.inf).amax(dim=1)
    return ((scores_QC >= best_Q[:, None]) & ~own_QC).sum(dim=1)
