"""Whether every block of a file is finite, as ggml's `ggml_validate_row_data` looks at them: what
llama.cpp would load, and answer with NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np

from quantkit.execution.rows import bounded
from quantkit.execution.stages import in_threads
from quantkit.progress import SILENT, Progress
from quantkit.source.tensors import Files, SourceTensor

PIECE = 1 << 24  # bytes that a thread holds


class _Piece(NamedTuple):
    """`blocks` blocks of a tensor, from `first` on; `t` is the tensor, a block a row."""

    t: SourceTensor
    first: int
    blocks: int


def faults(tensors: Sequence[SourceTensor], threads: int, progress: Progress = SILENT) -> list[str]:
    """A line on every tensor with NaN or infinity. Reads all of the file. Raises SourceError."""
    import quant_types

    found: dict[str, int] = {}
    done, total = 0, sum(t.ggml.row_bytes(prod(t.shape)) for t in tensors)
    with Files({t.path for t in tensors}) as files:

        def look(piece: _Piece) -> int:
            t, first, count = piece
            rows = files.read_rows(t, first, count)
            if t.ggml.name == "F32":
                rows = bounded(rows, t.name)
            blocks = rows.view(np.uint8).reshape(count, t.ggml.type_size)
            if (bad := quant_types.invalid_block(blocks, t.ggml.name)) >= 0:
                found[t.name] = min(first + bad, found.get(t.name, first + bad))
            return count * t.ggml.type_size

        for size in in_threads(look, _pieces(tensors), threads, files.stop):
            done += size
            progress.update("blocks", done, total)
    return [
        f"{t.name} has NaN or infinity, first in row {found[t.name] * t.ggml.block_size // n}"
        for t in tensors
        if t.name in found and (n := t.shape[-1])
    ]


def _pieces(tensors: Sequence[SourceTensor]) -> Iterator[_Piece]:
    for t in tensors:
        size, count = t.ggml.block_size, prod(t.shape) // t.ggml.block_size
        as_blocks = replace(t, shape=(count, size), flat=False)
        step = max(PIECE // t.ggml.type_size, 1)
        for first in range(0, count, step):
            yield _Piece(as_blocks, first, min(step, count - first))
