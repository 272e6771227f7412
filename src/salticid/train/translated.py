"""Lets a new model's linear layers start as a translation of what its Q-Former tells; see `salticid.models.qformer.translate`."""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from salticid.data.boxes import GRID, parse_boxes
from salticid.errors import DataError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor
from salticid.models.qformer.losses import MARKS, cell_owners
from salticid.models.qformer.translate import translate
from salticid.train.captioned import answers_of
from salticid.train.data import TrainingData
from salticid.train.recipe import DataRecipe

VIEWS = 4096
BATCH = 16


@torch.no_grad()
def start_translated(model: VisionLanguageModel, processor: VisionLanguageProcessor, data: DataRecipe, seed: int) -> None:
    """Fit the linear layers behind a trained Q-Former to `VIEWS` views of boxed things.

    Args:
        data: gives views with `<p>name</p> {box}`, as for `boxed_queries`.

    Raises:
        ConfigurationError: see `translate`. DataError: the views show nothing that has a name.
    """
    model.eval()  # a tower's running means are its own
    views = TrainingData(data, VIEWS, seed)
    embeddings: Any = model.language_model.get_input_embeddings()
    connector: Any = model.connector
    told, owned = [], []
    names: dict[str, int] = {}
    for start in range(0, VIEWS, BATCH):
        examples = [views[number] for number in range(start, start + BATCH)]
        pixels = processor.image_processor([example.images[0] for example in examples], return_tensors="pt")["pixel_values"]
        queries_BQD = connector.read(model.vision_tower(pixels))
        for queries_QD, example in zip(queries_BQD, examples, strict=True):
            regions = [region for region in parse_boxes(answers_of(example)) if region.label]
            if not regions:
                continue
            edges_K4 = torch.tensor([[region.left, region.top, region.right, region.bottom] for region in regions])
            owners_Q = cell_owners(edges_K4[None], torch.ones(1, len(regions), dtype=torch.bool), math.isqrt(len(queries_QD)))[0]
            labels_K = torch.tensor([names.setdefault(region.label, len(names)) for region in regions])
            told.append(queries_QD)
            owned.append(torch.where(owners_Q >= 0, labels_K[owners_Q.clamp(min=0)], -1))
    if len(names) < 2:
        shown = "nothing that has a name" if not names else "things of one name alone"
        raise DataError(f"translated_data shows {shown}: none of {VIEWS} views has another <p>name</p> {{<x1><y1><x2><y2>}}")
    words_UD = torch.stack([_embeddings(f" {name}", processor.tokenizer, embeddings).mean(dim=0) for name in names])  # as in a sentence
    opened = len(_embeddings("<", processor.tokenizer, embeddings))
    written = [f"<{min(GRID * mark // (MARKS - 1), GRID - 1)}>" for mark in range(MARKS)]  # as in a box
    numbers_MD = torch.stack([_embeddings(number, processor.tokenizer, embeddings)[opened] for number in written])
    translate(connector.layers, torch.cat(told), words_UD, numbers_MD, torch.cat(owned), seed)


def _embeddings(text: str, tokenizer: Any, embeddings: Any) -> torch.Tensor:
    return cast(torch.Tensor, embeddings(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])))
