"""A model for the length of one command: loaded fast, without the chatter of the libraries below."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from salticid.cli.lean_imports import lean_imports

if TYPE_CHECKING:
    from salticid.engine.vision_language import VisionLanguage


OWN_PROCESS = False
"""Whether this process serves one command alone, so that what others might want of the libraries below may be left out."""


@contextmanager
def open_model(model: str, precision: str, device: str, lean: bool = True) -> Iterator[VisionLanguage]:
    """`salticid.load`, quiet until the command ends; everything is as it was afterwards.

    `lean`: in a process of its own, without torch's compiler where nobody asks for it.

    Raises:
        SalticidError: see `salticid.load`.
    """
    from salticid.engine.threads import spin_briefly

    spin_briefly()
    with ExitStack() as until_the_end:
        with _without_collection():
            until_the_end.enter_context(quiet())
            try:
                with lean_imports() if lean and OWN_PROCESS else nullcontext():
                    vlm = _load(model, precision, device)
            except ImportError:  # another transformers, which wants more of the compiler than its marks: now there is all of it
                vlm = _load(model, precision, device)
        yield vlm


def _load(model: str, precision: str, device: str) -> VisionLanguage:
    from salticid.engine.load import load

    return load(model, precision, device)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log messages below errors, no progress bars of transformers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), _no_progress_bars():
            yield
    finally:
        logging.disable(level)


@contextmanager
def _without_collection() -> Iterator[None]:
    # Importing makes half a million objects that stay; looking for garbage among them takes a quarter of the time to load.
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """No bars for loading weights; a download from the Hub still shows its own in a terminal."""
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
