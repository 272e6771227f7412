"""Retrieval by a Q-Former: each caption is scored with each photo, and the first candidates once more by the matching head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from salticid.data.caption_text import add_text_branch_tokens, tokenize_captions
from salticid.data.records import CaptionedPhoto
from salticid.errors import ConfigurationError, DataError
from salticid.eval.retrieval import BELOW, as_table, captioned_split, evaluate_retrieval, rerank_rows
from salticid.models import SalticidImageProcessor
from salticid.models.photos import read_photo
from salticid.models.qformer import QFormerPretrainingConfig, QFormerPretrainingModel
from salticid.scorers.retrieval import recall

CAPTIONS = (("a dog on the beach", "a dog"), ("two red cups",), ("a table in this photo", "what", "no"), ("the beach",))


@pytest.fixture
def parts(tiny_model_folder: Path) -> tuple[QFormerPretrainingModel, Any, Any]:
    tokenizer = add_text_branch_tokens(AutoTokenizer.from_pretrained(tiny_model_folder))
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "encoder_hidden_size": 1280}
    torch.manual_seed(0)
    config = QFormerPretrainingConfig(
        vision_config={"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64},
        connector_config={"kind": "qformer", "queries": 3, "qformer_config": {**small, "initializer_range": 0.3}},
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        start_token_id=tokenizer.bos_token_id,
        projection_size=8,
    )
    return QFormerPretrainingModel(config).eval(), SalticidImageProcessor.from_preset("efficientnet_lite", size=64), tokenizer


@pytest.fixture
def photos(data_folder: Path) -> list[CaptionedPhoto]:
    """Four photos of four colours."""
    files = sorted((data_folder / "flickr8k" / "images").glob("*.png"))
    return [CaptionedPhoto(path, captions) for path, captions in zip(files, CAPTIONS, strict=False)]


@torch.no_grad()
def test_figures_are_those_of_every_pair_scored_alone(
    parts: tuple[QFormerPretrainingModel, Any, Any], photos: list[CaptionedPhoto], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image_processor, tokenizer = parts
    scores, matches, owners = torch.empty(4, 7), torch.empty(4, 7), []
    texts = [caption for photo in photos for caption in photo.captions]
    for row, photo in enumerate(photos):
        owners += [row] * len(photo.captions)
        seen = model.get_image_features(image_processor([read_photo(photo.path)], return_tensors="pt")["pixel_values"])
        for column, text in enumerate(texts):
            words = tokenize_captions(tokenizer, [text], 32)
            scores[row, column] = model.similarity(model.project_queries(model.read(seen)), model.embed_texts(*words))[0, 0]
            matches[row, column] = model.match(seen, *words)[0, 1]
    monkeypatch.setattr("salticid.eval.retrieval.BATCH", 3)
    told: list[tuple[str, int, int]] = []
    figures = evaluate_retrieval(
        model, image_processor, tokenizer, photos, rerank=7, progress=lambda name, done, total: told.append((name, done, total))
    )
    assert (figures.photos, figures.texts) == (4, 7)
    assert figures.similarity == recall(scores, torch.tensor(owners))
    assert figures.reranked == recall(scores + matches, torch.tensor(owners))
    assert [entry for entry in told if entry[0] == "texts"] == [("texts", 3, 7), ("texts", 6, 7), ("texts", 7, 7)]
    assert evaluate_retrieval(model, image_processor, tokenizer, photos).reranked is None


def test_ranking_again_reorders_the_first_candidates_alone() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.7], [0.0, 0.3, 0.2, 0.1]])
    asked: list[list[int]] = []

    def match(pairs: torch.Tensor) -> torch.Tensor:
        asked.extend(pairs.t().tolist())
        return torch.where(pairs[1] == 1, 5.0, -50.0)

    again = rerank_rows(scores, 2, match, lambda *_: None)
    assert sorted(asked) == [[0, 0], [0, 1], [1, 1], [1, 2]]
    assert_close(again, torch.tensor([[-49.1, 5.8, 0.1 - BELOW, 0.7 - BELOW], [-BELOW, 5.3, -49.8, 0.1 - BELOW]]))
    assert again.argsort(dim=1, descending=True).tolist() == [[1, 0, 3, 2], [1, 2, 3, 0]]


def test_splits(data_folder: Path) -> None:
    assert len(captioned_split(data_folder, "flickr8k")) == 8
    assert len(captioned_split(data_folder, "flickr8k", "train")) == 52
    with pytest.raises(ConfigurationError, match="no captioned data set 'daquar'; known: flickr8k, coco"):
        captioned_split(data_folder, "daquar")
    with pytest.raises(DataError, match="0 photos of coco have captions"):
        captioned_split(data_folder, "coco")


def test_the_table(parts: tuple[QFormerPretrainingModel, Any, Any], photos: list[CaptionedPhoto]) -> None:
    figures = evaluate_retrieval(*parts, photos)
    lines = as_table(figures, figures).splitlines()
    assert lines[0] == "| 4 photos, 7 texts | similarity | chance | before training |"
    assert lines[2].startswith("| image_to_text_r1 | ")
    assert len(lines) == 8
