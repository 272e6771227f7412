"""Flags that several verbs share, under the field's names."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="Embedded model, model folder, or Hub id owner/name.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, int8 or int4.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="0: the likeliest words; above 0: chance.")]
Seed = Annotated[int | None, typer.Option(help="Of the chance, to repeat an answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to change, values in YAML.")]
