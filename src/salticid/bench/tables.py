"""Tables in Markdown, ready for `benchmarks/`."""

from __future__ import annotations

from collections.abc import Sequence

from salticid.bench.speed import Spread

GB = 1e9


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rule, *rows))


def gigabytes(size: float) -> str:
    """Bytes in units of 1e9, two digits; small ones in millions."""
    return f"{size / GB:.2f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"


def spread(values: Spread) -> str:
    """`12.3 (11.9-12.6)`."""
    digits = 0 if values.median >= 100 else 1 if values.median >= 10 else 2
    return f"{values.median:.{digits}f} ({values.low:.{digits}f}-{values.high:.{digits}f})"
