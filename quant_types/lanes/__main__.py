"""Compile one kernel: `python -m quant_types.lanes MODULE.FUNCTION FILE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from quant_types import kernels


def main(name: str, path: str) -> None:
    """Compile, and keep the object code in a file."""
    # read when Numba is imported
    os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = kernels.target()
    from quant_types.lanes.compile import object_code

    kernels.keep(Path(path), object_code(name))


main(*sys.argv[1:])
