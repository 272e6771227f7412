"""Recipe of a tower that learns the words of captions, told from a stage of a whole model by `kind: words`.

salticid train recipes/nano/words.yaml data.folder=/photos
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from salticid.train.recipe import PartRecipe, ScheduleRecipe, SourceRecipe, Strict


class WordDataRecipe(Strict):
    """Photos with captions, boxes or questions: the data sets `flickr8k`, `coco` and `daquar`. Every photo is shown once per epoch.

    at_least: photos that must show a word for it to be learned. held_out: photos of the first data set that are kept aside, to measure.
    """

    folder: Path = Path("data")
    sources: list[SourceRecipe] = Field(min_length=1)
    at_least: PositiveInt = 10
    held_out: int = Field(default=0, ge=0)
    flip: bool = False
    crop: float = Field(default=1.0, gt=0, le=1)
    light: float = Field(default=0.0, ge=0, lt=1, description="how far brightness, contrast and saturation change, as a share")
    max_unreadable: int = Field(default=100, ge=0, description="photos that may be unreadable before the run stops")
    workers: int = Field(default=0, ge=0, description="processes that read photos ahead")


class WordsRecipe(Strict):
    """A tower and a linear layer behind it learn which words people use of a photo; see `salticid.train.words`.

    vision, vision_weights, image: as in a recipe of parts. tower, head: what learns of the two, and how fast. mix: share of the steps in
    which photos are blended in pairs, and their words with them (mixup, arXiv 1710.09412). dropout: of the pooled features.
    """

    kind: Literal["words"]
    name: str
    output: Path = Field(description="folder for the trained tower; checkpoints lie below it")
    vision: dict[str, Any]
    vision_weights: Path
    image: str
    tower: PartRecipe
    head: PartRecipe
    data: WordDataRecipe
    schedule: ScheduleRecipe
    mix: float = Field(default=0.0, ge=0, le=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = Field(default=0.0, ge=0, description="longest gradient; 0 cuts none")
    seed: int = 0
    save_steps: PositiveInt = 200
    log_steps: PositiveInt = 10
