"""transformers without torch's compiler and without distributed tensors, for commands that use neither.

To give a model class, transformers 5 loads both, which takes as long as all else that it loads, though a command on one machine needs the
compiler for nothing but to mark functions that must not be compiled. torches without distributed tensors exist, and transformers asks for
them by `torch.distributed.is_available`.

To know what is in its models' files, transformers reads them all when it is imported, and again for `transformers.models`: here once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
MASKS = f"{COMPILER}._trace_wrapped_higher_order_op"
MARKERS = ("allow_in_graph", "assume_constant_result", "disable")


@contextmanager
def lean_imports() -> Iterator[None]:
    """Inside, transformers is imported and loads models without the compiler; afterwards `torch.compile` is there as ever.

    Until the process ends transformers takes this torch for one without `torch.distributed`. Nothing happens where transformers' models or
    the compiler have been imported before. Where more of the compiler is asked for than its marks, it is loaded.
    """
    if COMPILER in sys.modules or "transformers.modeling_utils" in sys.modules:
        yield
        return
    import torch.compiler
    import torch.distributed

    compiler, masks = ModuleType(COMPILER), ModuleType(MASKS)
    stand_ins = {COMPILER: compiler, MASKS: masks}

    def withdraw() -> None:
        """The next import finds the real modules."""
        if vars(torch).get("_dynamo") is compiler:
            del torch._dynamo
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    def load_for(name: str) -> Any:
        """What is asked of the compiler beyond its marks, of the real one."""
        if name.startswith("__"):  # the import system's questions
            raise AttributeError(name)
        withdraw()
        return getattr(importlib.import_module(COMPILER), name)

    compiler.__path__ = []  # a package without files
    compiler.__getattr__ = load_for  # type: ignore[method-assign]
    masks.TransformGetItemToIndex = _transform_get_item_to_index  # type: ignore[attr-defined]
    markers = {marker: getattr(torch.compiler, marker) for marker in MARKERS}
    is_available = torch.distributed.is_available
    sys.modules.update(stand_ins)
    torch._dynamo = compiler
    torch.distributed.is_available = lambda: False
    for marker in MARKERS:
        setattr(compiler, marker, _unmarked)
        setattr(torch.compiler, marker, _unmarked)
    try:
        with _models_listed_once():
            yield
    finally:
        for marker, own in markers.items():
            setattr(torch.compiler, marker, own)
        torch.distributed.is_available = is_available
        withdraw()


@contextmanager
def _models_listed_once() -> Iterator[None]:
    """What `transformers.models` holds is taken from the list that `transformers` made of its own files a moment ago."""
    import transformers
    from transformers.utils import import_utils

    listed = import_utils.define_import_structure
    models = Path(transformers.__file__).parent / "models"

    def list_once(path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(path) != models / "__init__.py":
            return listed(path, prefix)
        known = listed(models, prefix="models")  # remembered: the very call that `transformers` made
        return {
            needs: {name.removeprefix("models."): found for name, found in modules.items() if name.startswith("models.")}
            for needs, modules in known.items()
        }

    import_utils.define_import_structure = list_once  # type: ignore[assignment]
    try:
        yield
    finally:
        import_utils.define_import_structure = listed


def _unmarked(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """What torch's markers give, bare or with arguments, as if nothing were ever compiled."""
    return _unmarked if function is None else function


def _transform_get_item_to_index() -> Any:
    """The real one, imported when it is called."""
    return importlib.import_module(MASKS).TransformGetItemToIndex()
