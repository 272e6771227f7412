"""Compiles the kernels while the package is built or installed; see `salticid.quant.native`. Without a compiler the package works too."""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src/salticid/quant/native")


class CustomBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """A wheel with the library is of this platform, though of any Python; one without is of all."""
        if self.target_name != "wheel":
            return
        problem = runpy.run_path(str(Path(self.root) / NATIVE / "build.py"))["build"]()
        if problem:
            self.app.display_warning(f"without Salticid's own kernels, torch's will serve: {problem}")
            return
        build_data["artifacts"].append(str(NATIVE / "kernels.so"))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
