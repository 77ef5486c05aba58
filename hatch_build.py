"""A wheel for one platform carries the kernels ready: `QUANTKIT_PLATFORM=linux-x86_64` while it is
built (`make wheels`). Without that variable it is a wheel for all, which compiles them."""

from __future__ import annotations

import os
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Builds the library of kernels into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        name = os.environ.get("QUANTKIT_PLATFORM")
        if not name:
            return
        sys.path.insert(0, self.root)
        from quant_types.lanes.library import PLATFORMS, build

        platform = PLATFORMS[name]
        build(platform)
        build_data["artifacts"] += ["/quant_types/ready/*"]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform.tag}"
