"""Compile one kernel, and prove it: `python -m quant_types.lanes MODULE.FUNCTION FILE`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

from quant_types import kernels, proof


def main(name: str, path: str) -> None:
    """Compile, and keep the object code in a file if it does what the array engine does, and is of
    the source that its directory is named by."""
    # read when Numba is imported
    os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = kernels.target()
    os.environ.update(kernels.NUMBA)
    from quant_types.lanes.compile import object_code

    code = object_code(name)
    kernels.use(name, code)
    try:
        proof.check(name)
    except RuntimeError as e:
        raise SystemExit(
            f"{e}: numba {version('numba')} makes it wrong, install a newer one"
        ) from None
    folder = Path(path).parent.name
    if folder.startswith("kernels-") and folder != kernels.folder_name():
        raise SystemExit("the source has changed meanwhile; run it again")
    kernels.keep(Path(path), code)


main(*sys.argv[1:])
