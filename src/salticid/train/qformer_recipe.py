"""Recipe of Q-Former pretraining, told from a stage of a whole model by `kind: qformer`.

salticid train recipes/tinygpt_v/nano_qformer.yaml data.folder=/photos
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from salticid.train.recipe import ScheduleRecipe, SourceRecipe, Strict


class CaptionDataRecipe(Strict):
    """Captioned photos. `folder` is the root of all data sets.

    captions: "references", what data sets give as people's captions of a photo; "answers", for data sets whose every answer is a caption,
    such as coco_caption; or "drawn", the answers of an example that is drawn anew each time, one after the other, beside the view of its
    photo for which they are true: for scenes, windows and mixtures by weight. cache: compute what the frozen tower sees of each photo
    once, and keep it on disk as float16, so that a step costs the Q-Former alone; photos are then shown one way only.
    """

    folder: Path = Path("data")
    sources: list[SourceRecipe] = Field(min_length=1)
    captions: Literal["references", "answers", "drawn"] = "references"
    max_tokens: int = Field(default=32, ge=3, description="longest caption, with its [CLS] and [SEP]")
    flip: bool = False
    crop: float = Field(default=1.0, gt=0, le=1)
    light: float = Field(default=0.0, ge=0, lt=1, description="how far brightness, contrast and saturation change, as a share")
    cache: bool = False
    drawn: PositiveInt | None = Field(
        default=None, description="examples that are drawn once, and then shown in turn; default, a new one each time"
    )
    max_unreadable: int = Field(default=100, ge=0, description="photos that may be unreadable before the run stops")
    workers: int = Field(default=0, ge=0, description="processes that read photos ahead")

    @model_validator(mode="after")
    def _shows_one_view(self) -> CaptionDataRecipe:
        if self.cache and (self.flip or self.crop < 1 or self.light):
            raise ValueError("cached features are of one view per photo: set flip to false, crop to 1 and light to 0, or cache to false")
        if self.drawn is not None and self.captions != "drawn":
            raise ValueError('drawn is how many examples are drawn: set captions to "drawn", or leave it out')
        if self.captions == "drawn" and self.cache and self.drawn is None:
            raise ValueError("cached features are of examples that are shown again: say in data.drawn how many, or set cache to false")
        if self.captions != "drawn" and any(source.weight != 1 for source in self.sources):
            raise ValueError("every photo is shown once per epoch, whatever its data set's weight; leave the weights out")
        return self


class QFormerRecipe(Strict):
    """Queries in front of a frozen tower learn from captions; see `salticid.models.qformer.pretraining`.

    vision, vision_weights, image, connector, model: as in a recipe of parts, of the model that the Q-Former is meant for; so a
    connector of kind "qformer". start: what its weights start from, see `salticid.checkpoints.qformer.start_from`; default, from chance.
    """

    kind: Literal["qformer"]
    name: str
    output: Path = Field(description="folder for the trained Q-Former; checkpoints and cached features lie below it")
    vision: dict[str, Any]
    vision_weights: Path
    image: str
    connector: dict[str, Any]
    model: dict[str, Any] = Field(default={})
    tokenizer: str = Field(description="whose tokenizer the text branch uses: an embedded model, a folder, or a Hub id")
    projection_size: PositiveInt = 256
    start: Path | None = None
    data: CaptionDataRecipe
    schedule: ScheduleRecipe
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    only_local: bool = Field(
        default=False, description="queries learn their cells (model.local_queries, boxed_queries) and nothing else yet"
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_grad_norm: float = Field(default=1.0, ge=0, description="longest gradient; 0 cuts none")
    seed: int = 0
    save_steps: PositiveInt = 200
    log_steps: PositiveInt = 10

    @model_validator(mode="after")
    def _has_negatives(self) -> QFormerRecipe:
        if self.schedule.batch_size < 2:
            raise ValueError("schedule.batch_size is 1, but a photo is told from the others of its batch: give 2 or more")
        if self.only_local and not self.model.get("local_queries"):
            raise ValueError("only_local is set, but the queries have no cells: set model.local_queries to true")
        if self.data.captions == "drawn" and self.schedule.steps is None:
            raise ValueError("a mixture that is drawn anew has no epochs: give schedule.steps")
        if self.schedule.min_lr > self.learning_rate:
            raise ValueError(f"schedule.min_lr {self.schedule.min_lr} is above learning_rate {self.learning_rate}; lower it")
        return self
