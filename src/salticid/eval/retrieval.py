"""Does a pretrained Q-Former find the text of a photo, and the photo of a text? On captioned photos that it never saw.

I photos, T texts, N patches, D width, Q queries, P projection, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from salticid.data.caption_text import tokenize_captions
from salticid.data.datasets import coco, flickr8k
from salticid.data.records import CaptionedPhoto
from salticid.errors import ConfigurationError, DataError
from salticid.models.photos import read_photo
from salticid.models.qformer import QFormerPretrainingModel
from salticid.scorers.retrieval import chance, recall

CAPTIONED: dict[str, tuple[Any, str]] = {"flickr8k": (flickr8k.read_photos, "dev"), "coco": (coco.read_photos, "heldout")}
"""Data sets with people's captions, and the split of each that is held out."""

BATCH = 32
BELOW = 1000.0  # puts what was not ranked again behind all that was, in its old order
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RetrievalFigures:
    """`recall`s by contrastive similarity, after the first candidates were ranked again by the matching head, and of pure chance."""

    photos: int
    texts: int
    similarity: dict[str, float]
    reranked: dict[str, float] | None
    chance: dict[str, float]


def captioned_split(folder: Path, kind: str, split: str | None = None) -> list[CaptionedPhoto]:
    """The photos with captions of a split, by default the held-out one, of the data set in `folder/kind`.

    Raises:
        ConfigurationError: an unknown kind or split. DataError: the data are not there, or no photo has captions.
    """
    if kind not in CAPTIONED:
        raise ConfigurationError(f"no captioned data set {kind!r}; known: {', '.join(CAPTIONED)}")
    read, held_out = CAPTIONED[kind]
    photos = [CaptionedPhoto(photo.path, photo.captions) for photo in read(Path(folder) / kind, split or held_out) if photo.captions]
    if len(photos) < 2:
        raise DataError(f"{len(photos)} photos of {kind} have captions, and a photo is found among others; give more data")
    return photos


@torch.inference_mode()
def evaluate_retrieval(
    model: QFormerPretrainingModel,
    image_processor: Any,
    tokenizer: Any,
    photos: Sequence[CaptionedPhoto],
    rerank: int = 0,
    max_tokens: int = 32,
    progress: Progress | None = None,
) -> RetrievalFigures:
    """Recall at 1, 5 and 10 over all photos and all their captions.

    Args:
        rerank: candidates of each query that the matching head ranks again, its "match" logit added to the similarity, as LAVIS does;
            0 for none. Costs that many passes per photo and per text.
        progress: hears what is done, how much of it, and out of how much.

    Raises:
        ImageError: a photo cannot be read.
    """
    model.eval()
    report: Progress = progress or (lambda *_: None)
    features_IND, embedded_IQP = _see(model, image_processor, photos, rerank > 0, report)
    texts = [(caption, number) for number, photo in enumerate(photos) for caption in photo.captions]
    ids_TL, mask_TL = (part.to(model.device) for part in tokenize_captions(tokenizer, [text for text, _ in texts], max_tokens))
    embedded_TP = torch.cat([model.embed_texts(ids_TL[s], mask_TL[s]) for s in _slices(len(texts), "texts", report)])
    scores_IT = model.similarity(embedded_IQP, embedded_TP).cpu()
    photo_of_text_T = torch.tensor([number for _, number in texts])
    reranked = None
    if rerank > 0:

        def match(pairs: torch.Tensor) -> torch.Tensor:
            of_photo, of_text = pairs.to(model.device)
            return model.match(features_IND[of_photo], ids_TL[of_text], mask_TL[of_text])[:, 1].float().cpu()

        to_text = rerank_rows(scores_IT, rerank, match, lambda done, total: report("photos ranked again", done, total))
        to_photo = rerank_rows(
            scores_IT.t(), rerank, lambda pairs: match(pairs.flip(0)), lambda done, total: report("texts ranked again", done, total)
        )
        reranked = recall(to_text, photo_of_text_T, to_photo_IT=to_photo.t())
    return RetrievalFigures(len(photos), len(texts), recall(scores_IT, photo_of_text_T), reranked, chance(photo_of_text_T, len(photos)))


def rerank_rows(
    scores_QC: torch.Tensor, candidates: int, match: Callable[[torch.Tensor], torch.Tensor], progress: Callable[[int, int], None]
) -> torch.Tensor:
    """New scores: of each row's first `candidates`, score plus `match`; of the others their score, behind all of those.

    `match` takes pairs (2, n) of row and column and gives (n,) logits.
    """
    count = min(candidates, scores_QC.shape[1])
    best_QK = scores_QC.topk(count, dim=1).indices
    new_QC = scores_QC - BELOW
    for row, columns_K in enumerate(best_QK):
        new_QC[row, columns_K] = scores_QC[row, columns_K] + match(torch.stack([torch.full_like(columns_K, row), columns_K]))
        progress(row + 1, len(best_QK))
    return new_QC


def _see(
    model: QFormerPretrainingModel, image_processor: Any, photos: Sequence[CaptionedPhoto], keep: bool, report: Progress
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (I, N, D) of the tower, or nothing unless they are to be kept, and the photos' embeddings (I, Q, P)."""
    features, embedded = [], []
    for part in _slices(len(photos), "photos", report):
        images = [read_photo(photo.path) for photo in photos[part]]
        seen_IND = model.get_image_features(image_processor(images, return_tensors="pt")["pixel_values"].to(model.device))
        embedded.append(model.project_queries(model.read(seen_IND)))
        if keep:
            features.append(seen_IND)
    return torch.cat(features) if keep else torch.empty(0), torch.cat(embedded)


def _slices(total: int, what: str, report: Progress) -> Any:
    for start in range(0, total, BATCH):
        yield slice(start, min(start + BATCH, total))
        report(what, min(start + BATCH, total), total)


def as_table(figures: RetrievalFigures, untrained: RetrievalFigures | None = None) -> str:
    """A Markdown table of all figures."""
    columns = {"similarity": figures.similarity, "ranked again": figures.reranked, "chance": figures.chance}
    columns["before training"] = None if untrained is None else untrained.similarity
    shown = {name: values for name, values in columns.items() if values is not None}
    lines = [f"| {figures.photos} photos, {figures.texts} texts | {' | '.join(shown)} |", "|---|" + "---|" * len(shown)]
    lines += [f"| {name} | " + " | ".join(f"{values[name]:.3f}" for values in shown.values()) + " |" for name in figures.similarity]
    return "\n".join(lines)
