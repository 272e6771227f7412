"""Recipes: one strict YAML file per training stage. What a run does, never where things lie on one machine.

salticid train recipes/nano/2_instruct.yaml data.folder=/photos schedule.steps=100
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator

from salticid.data.part import WHOLE
from salticid.errors import ConfigurationError
from salticid.models.moe import ExpertsConfig

Part = Literal["vision_tower", "connector", "language_model"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceRecipe(Strict):
    """One data set of a mixture: a name in `salticid.data.datasets.SOURCES`, its share, and its own options."""

    kind: str
    weight: PositiveFloat = 1.0
    path: str = Field(description="folder of this data set, below data.folder")
    part: tuple[float, float] = Field(
        default=WHOLE, description="from which share of its photos to which; [0, 0.6] and [0.6, 1] have none in common"
    )
    options: dict[str, Any] = {}


class DataRecipe(Strict):
    """Where photos come from and how they are shown. `folder` is the root of all data sets."""

    folder: Path = Path("data")
    sources: list[SourceRecipe] = Field(min_length=1)
    max_length: PositiveInt = 512
    pack: bool = True
    weigh_answers: bool = False
    label_rule: str | None = Field(default=None, description="learn what LLaVA's script would; see `salticid.data.llava_labels`")
    hide_padding_ids: bool = Field(default=False, description="padding ids inside a text are unseen, as in upstream's TinyGPT-V")
    group_by_modality_length: bool = Field(default=False, description="steps of photos alone or text alone, rows of like length together")
    flip: bool = False
    crop: float = Field(default=1.0, gt=0, le=1)
    light: float = Field(default=0.0, ge=0, lt=1, description="how far brightness, contrast and saturation change, as a share")
    max_unreadable: int = Field(default=100, ge=0, description="photos that may be unreadable before the run stops")
    workers: int = Field(default=0, ge=0, description="processes that read photos ahead")

    @model_validator(mode="after")
    def _fits_packing(self) -> DataRecipe:
        for name in ("label_rule", "hide_padding_ids"):
            if self.pack and getattr(self, name):
                raise ValueError(f"{name} needs conversations one by one: set pack to false")
        return self


class PartRecipe(Strict):
    """A part that learns; with `only`, those of its parameters whose names match one of these regular expressions.

    Without `only`, all of it; but of a language model that carries LoRA, the LoRA alone.
    """

    learning_rate: PositiveFloat
    weight_decay: float = Field(default=0.01, ge=0)
    only: list[str] | None = None

    @field_validator("only")
    @classmethod
    def _compiles(cls, patterns: list[str] | None) -> list[str] | None:
        for pattern in patterns or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns


class ScheduleRecipe(Strict):
    """How long, and at what share of each part's learning rate.

    `steps` are optimizer steps over a mixture by weight; `epochs` show every example that often instead, and weights are not used.
    Learning rates rise from `warmup_lr` over `warmup_steps` (or `warmup_ratio` of all steps), then follow `decay` down to `min_lr`.
    `decay: lavis` is the cosine of TinyGPT-V's upstream: counted from the first step, warm-up included, and rising where `min_lr` is
    above the learning rate.
    """

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    warmup_steps: int = Field(default=0, ge=0)
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    warmup_lr: float = Field(default=0.0, ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    decay: Literal["constant", "linear", "cosine", "lavis"] = "cosine"

    @model_validator(mode="after")
    def _says_things_once(self) -> ScheduleRecipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give either warmup_steps or warmup_ratio")
        if self.min_lr and self.decay == "constant":
            raise ValueError("min_lr needs a decay; constant has none")
        return self

    @property
    def step_examples(self) -> int:
        """Examples of one optimizer step."""
        return self.batch_size * self.accumulate


class LoraRecipe(Strict):
    """Low-rank factors beside weights of the language model (LoRA, arXiv 2106.09685); a model that carries some goes on with them.

    targets: names of linear layers, such as `q_proj`. shared: those of them that share one first factor, as TinyGPT-V's queries, keys
    and values do. experts: factors beside every expert's matrices too. merge: add all to the weights when the stage is finished.
    """

    rank: PositiveInt = 64
    alpha: PositiveFloat = 16.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] = []
    shared: list[str] = []
    experts: bool = False
    merge: bool = False

    @model_validator(mode="after")
    def _has_a_place(self) -> LoraRecipe:
        if not self.targets and not self.experts:
            raise ValueError("name targets, or set experts to true")
        if strange := sorted(set(self.shared) - set(self.targets)):
            raise ValueError(f"shared names {', '.join(strange)}, which targets does not")
        if self.experts and not self.merge:
            raise ValueError("factors beside experts have no file format of their own: set merge to true")
        return self


class ExpertsRecipe(Strict):
    """The dense model becomes sparse before it trains. options: of `ExpertsConfig`; the rest: see `upcycle_language_model`."""

    options: dict[str, Any] = {}
    reinitialise: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0)

    @field_validator("options")
    @classmethod
    def _are_known(cls, options: dict[str, Any]) -> dict[str, Any]:
        ExpertsConfig.from_dict(options)
        return options


class PhotosRecipe(Strict):
    """Changes to how the model sees photos, kept in the trained folder; fields of `ImageTransform`."""

    size: PositiveInt | None = None
    mode: Literal["squash", "pad", "crop"] | None = None
    background: Literal["mean"] | tuple[int, int, int] | None = None


class SelfCriticalRecipe(Strict):
    """Beside the supervised conversations, captions that the model draws are rewarded by their CIDEr-D; see `train.self_critical`."""

    samples: int = Field(default=5, ge=2, description="captions drawn for each photo")
    temperature: PositiveFloat = 1.0
    max_new_tokens: PositiveInt = 30
    weight: PositiveFloat = Field(default=1.0, description="of the reward beside the supervised loss")
    taught: Path | None = Field(default=None, description="folder of a teacher who scores captions too; see `train.taught_captions`")
    taught_share: float = Field(default=0.9, gt=0, le=1, description="of its scores in the reward of photos that it knows")


class RankedRecipe(Strict):
    """Beside the supervised conversations, captions that were drawn and scored before are compared with each other; see `train.ranked`."""

    drawn: Path = Field(description="folder that `salticid data drawn` wrote")
    captions: int = Field(default=4, ge=2, description="of each photo's: the best two, others of the better half by chance")
    temperature: PositiveFloat = Field(default=0.03, description="difference in score for which one caption is to become e times likelier")
    weight: PositiveFloat = Field(default=0.02, description="of squared nats beside the supervised loss")


class StageRecipe(Strict):
    """One training stage. Parts that `train` does not name stay frozen."""

    name: str
    model: Path = Field(description="folder, embedded name or Hub id of the model that this stage starts from; small weights are unpacked")
    output: Path = Field(description="folder for the trained model; checkpoints lie below it")
    template: str | None = Field(default=None, description="how conversations are written from this stage on; default, as before")
    photos: PhotosRecipe | None = None
    experts: ExpertsRecipe | None = None
    lora: LoraRecipe | None = None
    train: dict[Part, PartRecipe] = Field(min_length=1)
    data: DataRecipe
    schedule: ScheduleRecipe
    self_critical: SelfCriticalRecipe | None = None
    ranked: RankedRecipe | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the arithmetic, see `train.precision`; weights that learn are float32"
    )
    frozen_precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of the frozen matrices, which take most memory; where the arithmetic is fp32, so are they"
    )
    gradient_checkpointing: bool = Field(default=False, description="compute activations twice instead of keeping them")
    compile: bool = Field(
        default=False, description="compile the decoder; a minute or two once, a fifth faster after; needs a C++ compiler"
    )
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, ge=0, description="longest gradient; 0 cuts none")
    seed: int = 0
    save_steps: PositiveInt = 200
    log_steps: PositiveInt = 10

    @model_validator(mode="after")
    def _has_one_objective(self) -> StageRecipe:
        if self.self_critical and self.ranked:
            raise ValueError("give either self_critical or ranked")
        return self

    @model_validator(mode="after")
    def _rates_fall(self) -> StageRecipe:
        if self.schedule.decay == "lavis":
            return self
        for name, part in self.train.items():
            if self.schedule.min_lr > part.learning_rate:
                raise ValueError(
                    f"schedule.min_lr {self.schedule.min_lr} is above train.{name}.learning_rate {part.learning_rate}; "
                    "lower it, or set schedule.decay to lavis for a rate that rises, as in upstream's stage 4"
                )
        return self


class PartsRecipe(Strict):
    """Pretrained parts of a new model; see `salticid.checkpoints.assemble.Parts` for the fields."""

    output: Path
    vision: dict[str, Any]
    vision_weights: Path
    language: Path
    image: str
    connector: dict[str, Any] = {}
    model: dict[str, Any] = {}
    connector_weights: Path | None = None
    fit_norms: bool = False
    translated_data: DataRecipe | None = Field(
        default=None, description="boxed things, in whose names the linear layers behind a pretrained Q-Former start to speak"
    )
    language_layers: list[int] | None = None
    first_merges: PositiveInt | None = None
    vocabulary_data: DataRecipe | None = Field(default=None, description="data sets whose words keep their tokens")
    seed: int = 0

    @model_validator(mode="after")
    def _has_queries_to_translate(self) -> PartsRecipe:
        if self.translated_data is not None and not (self.connector_weights and self.connector.get("boxed_queries")):
            raise ValueError(
                "translated_data needs a Q-Former that tells boxes; give connector_weights and connector.boxed_queries, or leave it out"
            )
        return self


RecipeType = TypeVar("RecipeType", bound=Strict)


def read_recipe(path: Path, kind: type[RecipeType], overrides: Sequence[str] = ()) -> RecipeType:
    """Read a recipe; `overrides` are `key.key=value`, values written as YAML.

    Raises:
        ConfigurationError: no such file, not YAML, an unknown or ill-typed key; the message names the key.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"no recipe at {path}; recipes are YAML files, see the folder recipes/")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} holds no keys; a recipe is a YAML mapping")
    for override in overrides:
        _apply(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg'].lower()}" for item in error.errors())
        raise ConfigurationError(f"{path.name}: {problems}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML itself takes the last of two equal keys; a recipe that says a thing twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one value; a number among the keys counts the entries of a list, from 0: `data.sources.0.weight=2`."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigurationError(f"cannot read {override!r}; overrides are written key=value, as in schedule.steps=100")
    try:
        value = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"cannot read the value of {override!r}: {' '.join(str(error).split())}") from error
    *parents, last = key.split(".")
    holder: Any = values
    for parent in parents:
        place = _place(holder, parent, key)
        holder = holder.setdefault(place, {}) if isinstance(holder, dict) else holder[place]
    holder[_place(holder, last, key)] = value


def _place(holder: Any, name: str, key: str) -> Any:
    if isinstance(holder, dict):
        return name
    if not isinstance(holder, list):
        raise ConfigurationError(f"cannot set {key!r}: what holds {name!r} is a single value")
    if not name.isdecimal() or int(name) >= len(holder):
        raise ConfigurationError(f"cannot set {key!r}: {name!r} is no number from 0 to {len(holder) - 1}")
    return int(name)
