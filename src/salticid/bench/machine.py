"""What a figure is worth nothing without: the day, the processor, threads and versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import salticid

PACKAGES = ("torch", "transformers")


def describe_machine(packages: Iterable[str] = ()) -> dict[str, str | int]:
    """Facts for the head of a table; `packages` are further ones whose versions count."""
    facts: dict[str, str | int] = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "salticid": salticid.__version__,
    }
    for package in dict.fromkeys((*PACKAGES, *packages)):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def head(facts: dict[str, str | int]) -> str:
    """The facts as one line above a table."""
    plain = {name: value for name, value in facts.items() if name not in ("date", "processor", "cores", "threads", "system")}
    versions = ", ".join(f"{name} {value}" for name, value in plain.items())
    machine = f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, {facts['system']}"
    return f"{machine}; {versions}."


def _processor() -> str:
    vectors = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({vectors})"
