from __future__ import annotations

import os
import subprocess
import sys

import pytest

from salticid.engine.threads import SPINS, spin_briefly

# What a fresh process has in its environment once torch has been imported by way of salticid.
FRESH = "import os, sys, salticid; assert 'torch' not in sys.modules; salticid.load; print(os.environ.get('GOMP_SPINCOUNT'))"


def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "77"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("said", [None, "77"])
def test_the_library_says_it_before_torch_is_imported(said: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {} if said is None else {"GOMP_SPINCOUNT": said}
    found = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == (said or SPINS)
