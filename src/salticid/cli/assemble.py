"""salticid assemble: pretrained parts to a model that a first stage can train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salticid.cli.extras import require
from salticid.cli.flags import Overrides

EXAMPLE = "Example:  salticid assemble recipes/nano/0_parts.yaml vision_weights=lite2.pth language=SmolLM2.gguf"
NEEDS = ("pydantic", "yaml")


def assemble(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe of the parts.")],
    overrides: Overrides = None,
) -> None:
    """Put a vision tower, a new connector and a language model together; prints the folder of the model."""
    require("train", NEEDS)
    from salticid.train.recipe import PartsRecipe, read_recipe

    parts = read_recipe(recipe, PartsRecipe, overrides or ())
    from salticid.train.assemble import run_assemble

    print(run_assemble(parts))
