"""Lets a new model's linear layers start as a translation of what its Q-Former tells; see `salticid.models.qformer.translate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch

from salticid.checkpoints.qformer import load_qformer
from salticid.data.boxes import parse_boxes
from salticid.errors import ConfigurationError, DataError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor
from salticid.models.qformer.losses import cell_owners
from salticid.models.qformer.translate import translate
from salticid.train.captioned import answers_of
from salticid.train.data import TrainingData
from salticid.train.recipe import DataRecipe

VIEWS = 4096
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
    told, boxes, owned = [], [], []
    names: dict[str, int] = {}
    for start in range(0, VIEWS, BATCH):
        examples = [views[number] for number in range(start, start + BATCH)]
        pixels = processor.image_processor([example.images[0] for example in examples], return_tensors="pt")["pixel_values"]
        queries_BQD = trained.read(trained.get_image_features(pixels))
        for queries_QD, example in zip(queries_BQD, examples, strict=True):
            regions = [region for region in parse_boxes(answers_of(example)) if region.label]
            if not regions:
                continue
            edges_K4 = torch.tensor([[region.left, region.top, region.right, region.bottom] for region in regions])
            owners_Q = cell_owners(edges_K4[None], torch.ones(1, len(regions), dtype=torch.bool), math.isqrt(len(queries_QD)))[0]
            labels_K = torch.tensor([names.setdefault(region.label, len(names)) for region in regions])
            told.append(queries_QD)
            owned.append(torch.where(owners_Q >= 0, labels_K[owners_Q.clamp(min=0)], -1))
            boxes.append(edges_K4[owners_Q.clamp(min=0)])
    if len(names) < 2:
        shown = "nothing that has a name" if not names else "things of one name alone"
        raise DataError(f"translated_data shows {shown}: none of {VIEWS} views has another <p>name</p> {{<x1><y1><x2><y2>}}")
    layers = cast(torch.nn.Sequential, model.connector.layers)
    words_UD = torch.stack([_embedding(name, processor.tokenizer, embeddings) for name in names])
    translate(layers, torch.cat(told), words_UD, torch.cat(owned), torch.cat(boxes), seed)


def _embedding(name: str, tokenizer: Any, embeddings: Any) -> torch.Tensor:
    ids = tokenizer(f" {name}", add_special_tokens=False)["input_ids"]  # as in the middle of a sentence
    return cast(torch.Tensor, embeddings(torch.tensor(ids)).mean(dim=0))
