"""`python -m salticid` is the command `salticid`."""

from __future__ import annotations

from salticid.cli.main import run

run()
