"""What is known of a format: its name, its sizes, its bytes, and the functions of its engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quant_types.arrays import Array
from quant_types.errors import BadShape


@dataclass(frozen=True)
class BlockFormat:
    """A ggml quantization type.

    Attributes:
        name: as in GGUF files and in ggml, for example "Q4_K".
        ggml_type: the number of the type (`GGMLQuantizationType`).
        block_size: weights in a block.
        record: dtype of one block.
        quantize: the array engine: float32 `[blocks, block_size]` and importance of the same shape
            or None -> uint8 `[blocks, type_size]`.
        dequantize: uint8 `[blocks, type_size]` -> float32 `[blocks, block_size]`.
        lanes: where the lanes engine has its kernel, "module.function" in `quant_types.lanes`;
            the kernel for importance is called "function_importance".
        takes_importance: False where ggml ignores an importance matrix.
        needs_importance: True where ggml makes the format with an importance matrix only.
        weighs_rows: True where the weight of an error is `importance * sqrt(mean + x * x)`, mean
            over the squares of the whole row: `quantize` gets these weights for the importance.
        grid: the name of the grid that its points are of (`quant_types.grids`), if they are.
    """

    name: str
    ggml_type: int
    block_size: int
    record: np.dtype[Any] = field(repr=False)
    quantize: Callable[[Array, Array | None], Array] = field(repr=False)
    dequantize: Callable[[Array], Array] = field(repr=False)
    lanes: str = field(repr=False)
    takes_importance: bool = True
    needs_importance: bool = False
    weighs_rows: bool = False
    grid: str | None = None

    @property
    def type_size(self) -> int:
        """Bytes of a block."""
        return int(self.record.itemsize)

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` weights.

        Raises:
            BadShape: `n` does not divide into blocks.
        """
        if n % self.block_size:
            raise BadShape(
                f"{self.name} expects rows of a multiple of {self.block_size} weights, "
                f"found {n}; choose a format with smaller blocks"
            )
        return n // self.block_size * self.type_size
