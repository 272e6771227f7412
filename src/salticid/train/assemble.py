"""Run a parts recipe: pretrained parts to a model folder that stage 1 can start from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import salticid.quant  # noqa: F401  lets transformers read folders with small weights
from salticid.checkpoints.assemble import Parts, assemble
from salticid.data.conversation import Source
from salticid.engine.catalog import find_part
from salticid.errors import ConfigurationError
from salticid.models.photos import read_photo
from salticid.models.vision import MEASURED_PHOTOS
from salticid.train.data import build_sources
from salticid.train.publish import publishing
from salticid.train.recipe import PartsRecipe
from salticid.train.translated import start_translated

# Draws per photo when collecting words: enough to meet nearly every question that a photo gives rise to.
DRAWS = 4


def run_assemble(recipe: PartsRecipe) -> Path:
    """Put the parts together and save model and processor to `recipe.output`; returns that folder.

    Raises:
        ConfigurationError, CheckpointError, DataError: see the parts and the data.
    """
    sources = build_sources(recipe.vocabulary_data) if recipe.vocabulary_data else []
    fields = recipe.model_dump(exclude={"output", "vocabulary_data", "translated_data"})
    fields |= {name: find_part(fields[name]) for name in ("vision_weights", "language")}
    model, processor = assemble(Parts(**fields, vocabulary_texts=_texts(sources)))
    if model.config.vision_standardized and not model.vision_tower.feature_mean.any():  # nor measured by the Q-Former that it came with
        images = _some_photos(sources, recipe.seed)
        model.vision_tower.eval()
        model.vision_tower.standardize(processor.image_processor(images, return_tensors="pt")["pixel_values"])
    if recipe.translated_data is not None:
        start_translated(model, processor, recipe.translated_data, recipe.seed)
    with publishing(recipe.output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return recipe.output


def _some_photos(sources: list[Source], seed: int) -> list[Any]:
    everywhere = [(source, index) for source in sources for index in range(len(source))]
    chosen = random.Random(seed).sample(everywhere, min(MEASURED_PHOTOS, len(everywhere)))
    photos = [photo for source, index in chosen for photo in source.example(index, seed).images]
    if not photos:
        raise ConfigurationError("vision_standardized measures the tower's features on photos; name some in vocabulary_data")
    return [read_photo(photo) for photo in photos]


def _texts(sources: list[Source]) -> Iterator[str]:
    """Every question and answer, as a template writes it: without a space before its first word."""
    for source in sources:
        for index in range(len(source)):
            for seed in range(DRAWS):
                for turns in source.example(index, seed).conversations:
                    for turn in turns:
                        yield from (turn.question, turn.answer)
