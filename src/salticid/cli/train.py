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
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", " /--restart", help="Go on from the newest checkpoint, where there is one.")
    ] = True,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although the recipe has changed since the checkpoint.")
    ] = False,
) -> None:
    """Run one training stage; prints the folder of the trained model. A run that was cut off goes on where it stopped."""
    require("train", NEEDS)
    from salticid.train.heap import keep_freed_memory
    from salticid.train.kinds import open_recipe

    keep_freed_memory()
    opened, run = open_recipe(recipe, overrides or ())
    print(run(opened, resume=resume, accept_changes=accept_changes))
