"""Recipes are strict: what is misspelt, written twice or of a wrong kind is named, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from salticid.data.datasets import SOURCES
from salticid.data.llava_labels import LABEL_RULES
from salticid.data.templates import TEMPLATES
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageConfig
from salticid.models.image_processing import IMAGE_TRANSFORMS
from salticid.train.kinds import open_recipe
from salticid.train.recipe import PartsRecipe, StageRecipe, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("**/*.yaml"))
STAGE = """\
name: test
model: start
output: end
train:
  connector: {learning_rate: 1.0e-3}
data:
  sources:
    - {kind: flickr8k, path: flickr8k, weight: 3}
    - {kind: daquar, path: daquar}
schedule: {steps: 5, batch_size: 2}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(text: str) -> Path:
        path = tmp_path / "stage.yaml"
        path.write_text(text)
        return path

    return write_recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_of_the_project_is_one(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    if "language" in values:
        parts = read_recipe(path, PartsRecipe)
        assert parts.image in IMAGE_TRANSFORMS
        assert parts.model.get("template", "plain") in TEMPLATES
        VisionLanguageConfig(vision_config=parts.vision, connector_config=parts.connector, **parts.model)
        sources = parts.vocabulary_data.sources if parts.vocabulary_data else []
    else:
        stage, _ = open_recipe(path)
        assert str(stage.output) == f"runs/{stage.name}"
        sources = stage.data.sources
    assert {source.kind for source in sources} <= SOURCES.keys()
    for source in sources:
        assert not source.options.keys() - set(SOURCES[source.kind].__init__.__annotations__)


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.parent.name != "nano"], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_stages_of_published_systems_follow_each_other(path: Path) -> None:
    """Each starts where the one before it ends, and knows what it asks for."""
    values = yaml.safe_load(path.read_text())
    if "schedule" not in values or values.get("kind"):
        return
    stage = read_recipe(path, StageRecipe)
    outputs = {yaml.safe_load(other.read_text())["output"] for other in path.parent.glob("*.yaml") if other != path}
    assert str(stage.model) in outputs
    assert stage.template is None or stage.template in TEMPLATES
    assert stage.data.label_rule is None or stage.data.label_rule in LABEL_RULES


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 25


def test_defaults_and_values(write: Any) -> None:
    recipe = read_recipe(write(STAGE), StageRecipe)
    assert recipe.train["connector"].learning_rate == 1e-3
    assert recipe.schedule.accumulate == 1
    assert recipe.data.pack
    assert [source.weight for source in recipe.data.sources] == [3, 1]
    assert recipe.output == Path("end")


def test_overrides(write: Any) -> None:
    recipe = read_recipe(
        write(STAGE),
        StageRecipe,
        [
            "schedule.steps=9",
            "train.language_model.learning_rate=2e-4",
            "train.connector.only=['^norm']",
            "data.sources.1.weight=2.5",
            "data.folder=/photos=1",
            "precision=fp32",
        ],
    )
    assert recipe.schedule.steps == 9
    assert recipe.train["language_model"].learning_rate == 2e-4
    assert recipe.train["connector"].only == ["^norm"]
    assert [source.weight for source in recipe.data.sources] == [3, 2.5]
    assert recipe.data.folder == Path("/photos=1")
    assert recipe.precision == "fp32"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.stepps=9", "schedule.stepps: extra inputs are not permitted"),
        ("shedule.steps=9", "shedule: extra inputs are not permitted"),
        ("schedule.steps=0", "schedule.steps: input should be greater than 0"),
        ("schedule.steps=many", "schedule.steps: input should be a valid integer"),
        ("schedule.decay=square", "schedule.decay: input should be 'constant', 'linear', 'cosine' or 'lavis'"),
        ("train.eye.learning_rate=1", "train.eye"),
        ("train={}", "train: dictionary should have at least 1 item"),
        ("data.sources=[]", "data.sources: list should have at least 1 item"),
        ("data.crop=1.5", "data.crop: input should be less than or equal to 1"),
        ("train.connector.only=['(']", r"train.connector.only: .*'\(' is no regular expression"),
        ("data.sources.2.weight=1", "'2' is no number from 0 to 1"),
        ("data.sources.first.weight=1", "'first' is no number from 0 to 1"),
        ("name.first=x", "cannot set 'name.first': what holds 'first' is a single value"),
        ("schedule.steps", "cannot read 'schedule.steps'; overrides are written key=value"),
        ("=3", "cannot read '=3'"),
        ("schedule={steps: 1, steps: 2}", "the key 'steps' stands twice"),
        ("schedule={steps", "cannot read the value"),
    ],
)
def test_wrong_overrides_are_named(write: Any, override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        read_recipe(write(STAGE), StageRecipe, [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            STAGE.replace("schedule:", "shedule:"),
            "schedule: field required; shedule: extra inputs are not permitted",
        ),
        (STAGE + "seed: 1\nseed: 2\n", "not valid YAML.*the key 'seed' stands twice"),
        (STAGE + "train: [", "not valid YAML"),
        ("- a list\n", "holds no keys"),
        ("", "holds no keys"),
    ],
)
def test_wrong_files_are_named(write: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        read_recipe(write(text), StageRecipe)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no recipe at"):
        read_recipe(tmp_path / "none.yaml", StageRecipe)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        read_recipe(tmp_path / "binary.yaml", StageRecipe)


def test_merge_keys_still_work(write: Any) -> None:
    text = STAGE.replace("{kind: flickr8k, path: flickr8k, weight: 3}", "&first {kind: flickr8k, path: flickr8k, weight: 3}")
    text = text.replace("{kind: daquar, path: daquar}", "{<<: *first, path: other}")
    recipe = read_recipe(write(text), StageRecipe)
    assert [(source.path, source.weight) for source in recipe.data.sources] == [("flickr8k", 3), ("other", 3)]
