"""`python -m salticid` is the command `salticid`."""

from __future__ import annotations

import sys

from salticid.cli.main import main

sys.exit(main())
