"""quantkit: from a checkpoint to released GGUF files, byte for byte as llama.cpp makes them.

The functions are those of the command line; `docs/api.md` shows five tasks done with them. Nothing
is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.api import (
        convert,
        edit,
        fit,
        imatrix,
        inspect,
        merge,
        merge_imatrix,
        plan,
        quantize,
        release,
        report,
        split,
        verify,
    )
    from quantkit.architectures.rules import ConversionOptions
    from quantkit.calibration.imatrix import Imatrix, read_imatrix
    from quantkit.errors import QuantkitError
    from quantkit.gguf.splits import Splits
    from quantkit.hub.push import HubTarget
    from quantkit.model.open import Reading
    from quantkit.progress import Progress
    from quantkit.recipes.choose import Overrides

__version__ = "0.1.0"
LLAMA_CPP = "b11549"  # the version of llama.cpp whose bytes are made
DISTRIBUTION = "quantkit-gguf"  # its name on PyPI, where `quantkit` is another package

_WHERE = {
    **dict.fromkeys(
        ("convert", "quantize", "split", "merge", "plan", "inspect", "report", "fit", "imatrix",
         "merge_imatrix", "release", "verify", "edit"),
        "api",
    ),
    "ConversionOptions": "architectures.rules", "HubTarget": "hub.push",
    "Imatrix": "calibration.imatrix", "Overrides": "recipes.choose", "Progress": "progress",
    "QuantkitError": "errors", "Reading": "model.open", "Splits": "gguf.splits",
    "read_imatrix": "calibration.imatrix",
}  # fmt: skip

__all__ = [
    "ConversionOptions",
    "HubTarget",
    "Imatrix",
    "Overrides",
    "Progress",
    "QuantkitError",
    "Reading",
    "Splits",
    "__version__",
    "convert",
    "edit",
    "fit",
    "imatrix",
    "inspect",
    "merge",
    "merge_imatrix",
    "plan",
    "quantize",
    "read_imatrix",
    "release",
    "report",
    "split",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'quantkit' has no attribute {name!r}")
    return getattr(import_module(f"quantkit.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
