"""Imports point one way; a file that is added says by its folder what it may touch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import salticid

PACKAGE = Path(salticid.__file__).parent
LEVELS = {
    "errors": 0,
    "models": 1,
    "data": 1,
    "scorers": 1,
    "checkpoints": 2,
    "quant": 3,
    "engine": 4,
    "train": 5,
    "eval": 5,
    "serve": 5,
    "analysis": 5,
    "bench": 5,
    "cli": 6,
}
# The package itself: its lazy names, and `python -m salticid`.
ABOVE_ALL = ("__init__.py", "__main__.py")
LIGHT = {"typer", "salticid", *sys.stdlib_module_names}

SOURCES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "salticid")


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """Names that importing the module imports too: outside functions, and not for type checkers alone."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING":
            continue
        yield from imported(statement)


def part_of(name: str) -> str | None:
    """The folder (or `errors`) that an import of the package reaches; `None` for other packages and the bare package."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "salticid" and len(pieces) > 1 else None


def parse(source: Path) -> ast.Module:
    return ast.parse((PACKAGE / source).read_text(encoding="utf-8"))


def violations(source: Path, tree: ast.AST) -> list[str]:
    own = source.parts[0].removesuffix(".py")
    found = []
    for name in imported(tree):
        part = part_of(name)
        if part is None or part == own or part.startswith("__"):
            continue
        if part not in LEVELS:
            found.append(f"{name}: {part} has no level")
        elif LEVELS[part] >= LEVELS[own]:
            found.append(f"{name}: {own} may not touch {part}")
    return found


@pytest.mark.parametrize("source", [source for source in SOURCES if str(source) not in ABOVE_ALL], ids=str)
def test_imports_point_down(source: Path) -> None:
    assert source.parts[0].removesuffix(".py") in LEVELS, "a new folder needs a level"
    assert violations(source, parse(source)) == []


@pytest.mark.parametrize("source", [source for source in SOURCES if source.parts[0] == "cli"], ids=str)
def test_commands_load_nothing_heavy_at_once(source: Path) -> None:
    names = list(imported_at_once(parse(source)))
    assert {name.split(".")[0] for name in names} <= LIGHT
    assert {part_of(name) for name in names} <= {None, "cli", "errors", "__version__"}


def test_the_check_sees_what_it_should() -> None:
    def found(own: str, code: str) -> list[str]:
        return violations(Path(own) / "file.py", ast.parse(code))

    assert found("models", "from salticid.data.templates import Template") == ["salticid.data.templates: models may not touch data"]
    assert found("train", "def f():\n    import salticid.eval.runner")
    assert found("quant", "from salticid import engine")
    assert found("engine", "from salticid.quant import x\nfrom salticid.engine import y\nimport torch\nfrom salticid.errors import z") == []
    assert found("engine", "import salticid.new") == ["salticid.new: new has no level"]
    light = ast.parse(
        "import typer\ndef f():\n    import torch\nif TYPE_CHECKING:\n    import numpy\ntry:\n    import rich\nexcept ImportError: ..."
    )
    assert list(imported_at_once(light)) == ["typer", "rich"]
