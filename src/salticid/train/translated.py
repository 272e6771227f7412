"""Lets a new model's linear layers start as a translation of what its Q-Former tells; see `salticid.models.qformer.translate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from salticid.checkpoints.qformer import load_qformer
from salticid.data.boxes import Region, parse_boxes
from salticid.errors import ConfigurationError, DataError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor
from salticid.models.qformer.losses import cell_owners
from salticid.models.qformer.translate import translate
from salticid.train.data import TrainingData
from salticid.train.recipe import DataRecipe

VIEWS = 768
BATCH = 16


@torch.no_grad()
def start_translated(model: VisionLanguageModel, processor: VisionLanguageProcessor, folder: Path, data: DataRecipe, seed: int) -> None:
    """Fit the connector's linear layers to `VIEWS` views of boxed things.

    Args:
        folder: the Q-Former that the connector was filled from. data: gives views with `<p>name</p> {box}`, as for `boxed_queries`.

    Raises:
        ConfigurationError: its queries know no boxes, or see `translate`. DataError: the views show nothing that has a name.
    """
    trained = load_qformer(folder)[0].eval()
    if trained.box_head is None:
        raise ConfigurationError(f"the queries of {folder} know no boxes and names; train them with model.boxed_queries")
    views = TrainingData(data, VIEWS, seed)
    embeddings: Any = model.language_model.get_input_embeddings()
    told, said = [], []
    for start in range(0, VIEWS, BATCH):
        examples = [views[number] for number in range(start, start + BATCH)]
        pixels = processor.image_processor([example.images[0] for example in examples], return_tensors="pt")["pixel_values"]
        queries_BQD = trained.read(trained.get_image_features(pixels))
        for queries_QD, example in zip(queries_BQD, examples, strict=True):
            regions = parse_boxes(" ".join(turn.answer for turns in example.conversations for turn in turns))
            for query, name in named_queries([region for region in regions if region.label], len(queries_QD)):
                ids = processor.tokenizer(f" {name}", add_special_tokens=False)["input_ids"]  # as in the middle of a sentence
                told.append(queries_QD[query])
                said.append(embeddings(torch.tensor(ids)).mean(dim=0))
    if not told:
        raise DataError(f"translated_data shows nothing that has a name: none of {VIEWS} views has <p>name</p> {{<x1><y1><x2><y2>}}")
    translate(model.connector.layers, torch.stack(told), torch.stack(said), trained.box_head.weight, seed)


def named_queries(regions: list[Region], queries: int) -> list[tuple[int, str]]:
    """Which queries have one of these things on their cell, and what it is called."""
    if not regions:
        return []
    boxes_1K4 = torch.tensor([[[region.left, region.top, region.right, region.bottom] for region in regions]])
    owners_Q = cell_owners(boxes_1K4, torch.ones(boxes_1K4.shape[:2], dtype=torch.bool), math.isqrt(queries))[0]
    return [(query, regions[owner].label) for query, owner in enumerate(owners_Q.tolist()) if owner >= 0]
