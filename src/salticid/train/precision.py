"""The arithmetic of a training stage, chosen for the machine where the recipe leaves it open."""

from __future__ import annotations

import logging
from functools import cache

import torch

from salticid.errors import ConfigurationError
from salticid.quant.processor import multiplies_bfloat16

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(asked: str) -> str:
    """The precision that a recipe asks for; for "auto" bf16 on accelerators and on processors that multiply it, fp32 elsewhere.

    Raises:
        ConfigurationError: fp16 without an accelerator.
    """
    if asked == "auto":
        return "fp32" if _is_bfloat16_slow() else "bf16"
    if asked == "bf16" and _is_bfloat16_slow():
        _warn_of_bfloat16()
    if asked == "fp16" and not torch.accelerator.is_available():
        raise ConfigurationError("precision fp16 scales its gradients, which needs a GPU; set precision to auto, bf16 or fp32")
    return asked


def _is_bfloat16_slow() -> bool:
    return not torch.accelerator.is_available() and not multiplies_bfloat16()


@cache  # a run asks more than once
def _warn_of_bfloat16() -> None:
    logger.warning("this processor has no instructions for bf16, which may take a hundred times as long as fp32: set precision to auto")
