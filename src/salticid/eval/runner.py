"""Asks a model the items of benchmarks, in batches and greedily, and beside it two that see nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from salticid.data.templates import get_template
from salticid.engine.vision_language import VisionLanguage
from salticid.errors import ConfigurationError
from salticid.eval.benchmarks import BENCHMARKS, TASKS
from salticid.eval.benchmarks.base import Item
from salticid.models import VisionLanguageModel, VisionLanguageProcessor

GREY = Image.new("RGB", (64, 64), (127, 127, 127))


@dataclass(frozen=True)
class Figures:
    """Scores of one benchmark: of the model, of the same model shown a grey photo, and of guessing from training statistics."""

    benchmark: str
    items: int
    seconds: float
    model: dict[str, float]
    grey: dict[str, float] | None
    guess: dict[str, float]


def answer_items(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    items: Sequence[Item],
    max_new_tokens: int,
    batch_size: int = 16,
    grey: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """One greedy answer per item. With `grey` each photo is replaced by a grey square. `progress` hears how many are done."""
    vlm = VisionLanguage(model, processor)
    answers: list[str] = []
    for start in range(0, len(items), batch_size):
        batch = [(GREY if grey else item.photo, item.question) for item in items[start : start + batch_size]]
        answers += vlm.ask_many(batch, batch_size, max_new_tokens=max_new_tokens)
        if progress:
            progress(len(answers))
    return answers


def evaluate(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    folder: Path,
    names: Iterable[str] | None = None,
    blind: bool = True,
    save_answers: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Figures]:
    """Run benchmarks on the data below `folder`.

    Args:
        names: of `BENCHMARKS`; default all that the model's template has words for.
        blind: also show the model grey photos, which costs as much again.
        save_answers: folder for one JSON-lines file per benchmark (photo, question, answer).

    Raises:
        ConfigurationError: an unknown benchmark. DataError: its data is not below `folder`.
    """
    tasks = get_template(model.config.template).tasks
    chosen = list(names or (name for name in BENCHMARKS if tasks or name not in TASKS))
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        raise ConfigurationError(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    results = []
    for name in chosen:
        benchmark = BENCHMARKS[name](folder)
        report = (lambda done, name=name, total=len(benchmark.items): progress(name, done, total)) if progress else None
        start = time.monotonic()
        answers = answer_items(model, processor, benchmark.items, benchmark.max_new_tokens, progress=report)
        seconds = time.monotonic() - start
        if save_answers is not None:
            _save(Path(save_answers) / f"{name}.jsonl", benchmark.items, answers)
        grey = None
        if blind:
            # A grey photo is the same for every item: each distinct question is asked once.
            questions = sorted({item.question for item in benchmark.items})
            unseen = [Item(Path(), question) for question in questions]
            blindly = dict(zip(questions, answer_items(model, processor, unseen, benchmark.max_new_tokens, grey=True), strict=True))
            grey = benchmark.score([blindly[item.question] for item in benchmark.items])
        results.append(Figures(name, len(answers), seconds, benchmark.score(answers), grey, benchmark.score(benchmark.guesses())))
    return results


def as_table(results: Sequence[Figures]) -> str:
    """A Markdown table of all figures."""
    lines = ["| benchmark | figure | model | shown a grey photo | guessing from training statistics | items |", "|---|---|---|---|---|---|"]
    for result in results:
        for figure, value in result.model.items():
            grey = "" if result.grey is None else f"{result.grey[figure]:.3f}"
            lines.append(f"| {result.benchmark} | {figure} | {value:.3f} | {grey} | {result.guess[figure]:.3f} | {result.items} |")
    return "\n".join(lines)


def _save(path: Path, items: Sequence[Item], answers: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for item, answer in zip(items, answers, strict=True):
            file.write(json.dumps({"photo": item.photo.name, "question": item.question, "answer": answer}) + "\n")
