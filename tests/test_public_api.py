from __future__ import annotations

import subprocess
import sys

import pytest

import salticid

NAMES = {
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "ImageError",
    "InputError",
    "MissingExtraError",
    "ModelNotFoundError",
    "SalticidError",
    "VisionLanguage",
    "VisionLanguageConfig",
    "VisionLanguageModel",
    "VisionLanguageProcessor",
    "__version__",
    "load",
    "quantize_model",
}


def test_the_public_names_are_these_and_all_exist() -> None:
    assert set(salticid.__all__) == NAMES == set(dir(salticid))
    for name in NAMES:
        assert getattr(salticid, name) is not None


def test_lazy_names_are_what_they_say() -> None:
    for name in ("VisionLanguage", "VisionLanguageConfig", "VisionLanguageModel", "VisionLanguageProcessor", "load", "quantize_model"):
        assert getattr(salticid, name).__name__ == name


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ask'; public names: CheckpointError"):
        _ = salticid.ask


def test_import_is_light() -> None:
    # What is imported decides how long it takes, whatever the machine does beside it.
    probe = "import sys, salticid; print([name for name in ('torch', 'transformers', 'numpy', 'PIL', 'typer') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "[]\n"
