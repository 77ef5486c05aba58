"""Compile kernels, and prove them: `python -m quant_types.lanes DIRECTORY MODULE.FUNCTION ...`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

from quant_types import kernels, proof


def main(directory: str, *names: str) -> None:
    """Compile, and keep object code in the directory if it does what the array engine does, and is
    of the source that the directory is named by."""
    # read when Numba is imported
    os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = kernels.target()
    os.environ.update(kernels.NUMBA)
    from quant_types.lanes.compile import object_code

    for name in names:
        code = object_code(name)
        kernels.use(name, code)
        try:
            proof.check(name)
        except RuntimeError as e:
            raise SystemExit(
                f"{e}: numba {version('numba')} makes it wrong, install a newer one"
            ) from None
        folder = Path(directory)
        if folder.name.startswith("kernels-") and folder.name != kernels.folder_name():
            raise SystemExit("the source has changed meanwhile; run it again")
        kernels.keep(kernels.path_of(name, folder), code)


main(*sys.argv[1:])
