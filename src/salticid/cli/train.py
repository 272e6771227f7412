"""salticid train: one stage, from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salticid.cli.extras import require
from salticid.cli.flags import Overrides

EXAMPLE = "Example:  salticid train recipes/nano/2_instruct.yaml data.folder=/photos schedule.steps=100"
NEEDS = ("pydantic", "yaml", "accelerate", "tensorboard")


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The stage's recipe; see the folder recipes/.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint, where there is one.")] = True,
) -> None:
    """Run one training stage; prints the folder of the trained model. A run that was cut off goes on where it stopped."""
    require("train", NEEDS)
    from salticid.train.recipe import StageRecipe, read_recipe

    stage = read_recipe(recipe, StageRecipe, overrides or ())
    from salticid.train.stage import run_stage

    print(run_stage(stage, resume=resume))
