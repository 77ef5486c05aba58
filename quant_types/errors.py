"""The errors of quant_types. Each message is one line: expected, found, what to do.

QuantTypesError (a ValueError)
├── UnknownFormat    no format, or no engine, of that name
├── BadShape         a row that does not divide into blocks, a buffer of another size
├── BadDtype         data that is not float32, float16 or bfloat16; bytes that are not uint8
├── BadImportance    importance of another length, or with NaN, infinite or negative values
├── NeedsImportance  a format that cannot be made without importance
├── NotFinite        NaN or infinity among the weights; `.row` says where
├── OutOfRange       finite weights too large for a search: their errors overflow float32
└── KernelError      a kernel that cannot be compiled on this machine
    └── CacheFull        no room on the disk for what was compiled; `.folder` says where
"""

from __future__ import annotations

from pathlib import Path


class QuantTypesError(ValueError):
    """Root of every error that quant_types raises on bad input."""


class UnknownFormat(QuantTypesError):
    """A format or engine name that is not in the table."""


class BadShape(QuantTypesError):
    """A length that does not divide into blocks, or a buffer of the wrong size."""


class BadDtype(QuantTypesError):
    """An array of a type that cannot be read or written."""


class BadImportance(QuantTypesError):
    """Importance values that cannot weigh this array."""


class NeedsImportance(QuantTypesError):
    """No importance for a format that cannot be made without.

    Attributes:
        format: its name.
    """

    def __init__(self, name: str) -> None:
        self.format = name
        super().__init__(
            f"{name} expects importance, found none; give the importance of each input channel, "
            "or choose a format that does without"
        )


class NotFinite(QuantTypesError):
    """NaN or infinity in the weights.

    Attributes:
        row: index of the first row with one, in the array seen as `[-1, n]`.
    """

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__(
            f"expected finite weights, found NaN or infinity first in row {row}; "
            "repair or leave out that tensor"
        )


class OutOfRange(QuantTypesError):
    """Weights and importance whose errors overflow float32: ggml aborts on them."""

    def __init__(self) -> None:
        super().__init__(
            "expected weights whose weighted squares fit in float32, found greater ones, on which "
            "ggml aborts; choose another format for that tensor"
        )


class KernelError(QuantTypesError):
    """A kernel of the lanes engine that could not be compiled or kept."""


class CacheFull(KernelError):
    """The disk is full that compiled kernels are kept on.

    Attributes:
        folder: the directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"{folder}: no space is left for compiled kernels; make room there, or name a "
            "directory that has some in QUANTKIT_CACHE_DIR"
        )
