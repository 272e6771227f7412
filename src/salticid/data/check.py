"""What a data set will give to training, found out before training: rows, photos that cannot be read, lengths, and a few examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from salticid.data.conversation import Example, Source, Turn
from salticid.data.mixture import shuffled
from salticid.data.templates import Template
from salticid.errors import DataError, ImageError

SHOWN = 3


@dataclass
class SourceReport:
    """Of one data set: its rows, and of those that were looked at, what they hold. Tokens are counted by conversation, with its photos.

    `left_out` counts rows that the reader itself left out when it opened the files: missing photos, incomplete samples, damaged shards.
    """

    kind: str
    path: str
    rows: int = 0
    left_out: int = 0
    looked_at: int = 0
    silent: int = 0
    photos: int = 0
    unreadable: int = 0
    conversations: int = 0
    too_long: int = 0
    tokens: dict[str, float] | None = None
    examples: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Check:
    """How examples are looked at.

    Args:
        read_photo: opens a photo, or raises `ImageError`.
        template: how conversations are written down.
        count: tokens of a conversation about so many photos; `None` where there is no tokenizer.
        max_length: longest sequence in tokens.
    """

    def __init__(
        self,
        read_photo: Callable[[Any], Any],
        template: Template,
        count: Callable[[Sequence[Turn], int], int] | None = None,
        max_length: int | None = None,
    ) -> None:
        self.read_photo, self.template, self.count, self.max_length = read_photo, template, count, max_length

    def __call__(self, source: Source, kind: str, path: str, limit: int, seed: int = 0) -> SourceReport:
        """Look at `limit` rows drawn by `seed`, or at all where there are fewer."""
        report = SourceReport(kind, path, rows=len(source), looked_at=min(limit, len(source)))
        skipped = (getattr(source, "skipped", 0), getattr(source, "incomplete", 0), len(getattr(source, "damaged", ())))
        report.left_out = sum(skipped)
        lengths: list[int] = []
        for place in range(report.looked_at):
            try:
                example = source.example(shuffled(place, len(source), seed), seed)
            except DataError as error:
                self._note(report, error)
                continue
            self._look(example, report, lengths)
        if lengths:
            report.tokens = {"min": min(lengths), "median": median(lengths), "max": max(lengths)}
        if report.unreadable:
            report.problems.append(f"{report.unreadable} of {report.looked_at} rows cannot be read")
        if report.silent == report.looked_at:
            report.problems.append("no row says anything")
        elif lengths and report.too_long == len(lengths):
            report.problems.append(f"no conversation fits {self.max_length} tokens")
        return report

    def _look(self, example: Example, report: SourceReport, lengths: list[int]) -> None:
        report.photos += len(example.images)
        report.silent += not example.conversations
        report.conversations += len(example.conversations)
        try:
            for image in example.images:
                self.read_photo(image)
        except ImageError as error:
            self._note(report, error)
        for turns in example.conversations:
            if self.count is not None:
                lengths.append(self.count(turns, len(example.images)))
                report.too_long += self.max_length is not None and lengths[-1] > self.max_length
        if example.conversations and len(report.examples) < SHOWN:
            report.examples.append(self.template.prompt(example.conversations[0], len(example.images)))

    @staticmethod
    def _note(report: SourceReport, error: Exception) -> None:
        """The first few are told, all are counted."""
        report.unreadable += 1
        if report.unreadable <= SHOWN:
            report.problems.append(" ".join(str(error).split()))
