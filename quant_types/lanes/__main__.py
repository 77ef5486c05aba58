"""Compile one kernel, and prove it: `python -m quant_types.lanes MODULE.FUNCTION FILE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from quant_types import kernels


def main(name: str, path: str) -> None:
    """Compile, and keep the object code in a file if it does what the array engine does."""
    # read when Numba is imported
    os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = kernels.target()
    from quant_types.lanes.compile import object_code
    from quant_types.lanes.proof import check

    code = object_code(name)
    check(name, code)
    kernels.keep(Path(path), code)


main(*sys.argv[1:])
