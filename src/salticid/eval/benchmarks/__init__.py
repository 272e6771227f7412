"""Benchmarks by name. One file each; each is a class of `base.Benchmark`'s shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from salticid.eval.benchmarks.base import Benchmark
from salticid.eval.benchmarks.captions import Flickr8kCaptions
from salticid.eval.benchmarks.daquar import DaquarAnswers
from salticid.eval.benchmarks.refer import ReferObjects
from salticid.eval.benchmarks.unknown import UnknownQuestions
from salticid.eval.benchmarks.yes_no import YesNoObjects

BENCHMARKS: dict[str, Callable[[Path], Benchmark]] = {
    "captions": Flickr8kCaptions,
    "daquar": DaquarAnswers,
    "yes_no_random": lambda folder: YesNoObjects(folder, "random"),
    "yes_no_popular": lambda folder: YesNoObjects(folder, "popular"),
    "yes_no_adversarial": lambda folder: YesNoObjects(folder, "adversarial"),
    "unknown": UnknownQuestions,
    "refer": ReferObjects,
}

TASKS = ("refer",)
"""Those that ask in the words of a task identifier, which only models trained with them understand."""

__all__ = ["BENCHMARKS", "TASKS", "Benchmark"]
