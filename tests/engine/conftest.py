"""A tiny loaded model and photos for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salticid.engine.load import load
from salticid.engine.vision_language import VisionLanguage


@pytest.fixture
def vlm(tiny_model_folder: Path) -> VisionLanguage:
    return load(tiny_model_folder, precision="fp32", device="cpu")


@pytest.fixture
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (40, 50, 3), dtype=np.uint8) for _ in range(3)]
