"""The errors of quant_types. Each message is one line: expected, found, what to do.

QuantTypesError (a ValueError)
├── UnknownFormat    no format, or no engine, of that name
├── BadShape         a row that does not divide into blocks, a buffer of another size
├── BadDtype         data that is not float32, float16 or bfloat16; bytes that are not uint8
├── BadImportance    importance of another length, or with NaN, infinite or negative values
├── NotFinite        NaN or infinity among the weights; `.row` says where
└── KernelError      a kernel that cannot be compiled on this machine
"""


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


class KernelError(QuantTypesError):
    """A kernel of the lanes engine that could not be compiled or kept."""
