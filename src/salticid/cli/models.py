"""salticid models: what is at hand without a download."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from salticid.cli.flags import Json

if TYPE_CHECKING:
    from salticid.engine.catalog import ModelCard

EXAMPLE = "Example:  salticid models --json"
HEADINGS = ("NAME", "SIZE", "PARAMETERS", "ACTIVE", "WEIGHTS", "LICENCE", "")


def models(as_json: Json = False) -> None:
    """List the models at hand: embedded ones, and Salticid models in the local cache of the Hugging Face Hub.

    ACTIVE counts the parameters that one token uses: fewer than all where there are experts.
    """
    from salticid.engine.catalog import model_cards

    cards = list(model_cards())
    if as_json:
        print(json.dumps([asdict(card) for card in cards], indent=2))
    elif cards:
        _print_table([HEADINGS, *map(_row, cards)])
    else:
        print("no model is at hand: none is embedded in this installation, and the Hub's local cache holds none", file=sys.stderr)


def _row(card: ModelCard) -> tuple[str, ...]:
    size, all_, active = (f"{card.size / 1e6:.1f} MB", f"{card.parameters / 1e6:.1f} M", f"{card.active / 1e6:.1f} M")
    return card.name, size, all_, active, card.weights, card.licence, card.description


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
