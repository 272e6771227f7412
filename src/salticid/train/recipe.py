"""Recipes: one strict YAML file per training stage. What a run does, never where things lie on one machine.

salticid train recipes/nano/2_instruct.yaml data.folder=/photos schedule.steps=100
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, field_validator

from salticid.errors import ConfigurationError

Part = Literal["vision_tower", "connector", "language_model"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceRecipe(Strict):
    """One data set of a mixture: a name in `salticid.data.datasets.SOURCES`, its share, and its own options."""

    kind: str
    weight: PositiveFloat = 1.0
    path: str = Field(description="folder of this data set, below data.folder")
    options: dict[str, Any] = {}


class DataRecipe(Strict):
    """Where photos come from and how they are shown. `folder` is the root of all data sets."""

    folder: Path = Path("data")
    sources: list[SourceRecipe] = Field(min_length=1)
    max_length: PositiveInt = 512
    pack: bool = True
    weigh_answers: bool = False
    flip: bool = False
    crop: float = Field(default=1.0, gt=0, le=1)


class PartRecipe(Strict):
    """A part that learns; with `only`, those of its parameters whose names match one of these regular expressions."""

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
    """Optimizer steps; learning rates rise over `warmup_steps`, then follow `decay` down to zero (or stay)."""

    steps: PositiveInt
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "cosine"


class StageRecipe(Strict):
    """One training stage. Parts that `train` does not name stay frozen."""

    name: str
    model: Path = Field(description="folder of the model that this stage starts from")
    output: Path = Field(description="folder for the trained model; checkpoints lie below it")
    train: dict[Part, PartRecipe] = Field(min_length=1)
    data: DataRecipe
    schedule: ScheduleRecipe
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = Field(default=False, description="compile the decoder; two minutes once, a fifth faster after; needs a C++ compiler")
    max_grad_norm: PositiveFloat = 1.0
    seed: int = 0
    save_steps: PositiveInt = 200
    log_steps: PositiveInt = 10


class PartsRecipe(Strict):
    """Pretrained parts of a new model; see `salticid.checkpoints.assemble.Parts` for the fields."""

    output: Path
    vision: dict[str, Any]
    vision_weights: Path
    language: Path
    image: str
    connector: dict[str, Any] = {}
    model: dict[str, Any] = {}
    language_layers: list[int] | None = None
    first_merges: PositiveInt | None = None
    vocabulary_data: DataRecipe | None = Field(default=None, description="data sets whose words keep their tokens")
    seed: int = 0


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
