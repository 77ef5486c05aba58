"""The rows of a chunk, as the plan wants them: read, and put in order."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantkit.checkpoint import Files, SourceTensor
from quantkit.plan import Chunk, Plan


def fetch(chunk: Chunk, plan: Plan, files: Files) -> np.ndarray[Any, Any]:
    """`[count, n_per_row]` in float32, float16 or bfloat16; or blocks of bytes as they are stored.

    Raises CorruptFile if the file ends early.
    """
    source, order = plan.sources[chunk.segment.source], chunk.segment.order
    rows = files.read_rows(source, chunk.source_row, chunk.count)
    if order:
        groups = rows.reshape(-1, len(order), source.n_per_row)
        rows = groups[:, list(order)].reshape(chunk.count, -1)
    return rows


def dequantize(rows: np.ndarray[Any, Any], source: SourceTensor) -> np.ndarray[Any, Any]:
    """Blocks of bytes as float32 rows `[count, n_per_row]`: ggml's `to_float`.

    Formats that quant_types does not have are read by the gguf package.
    """
    import quant_types

    if any(f.name == source.ggml.name for f in quant_types.FORMATS):
        floats: np.ndarray[Any, Any] = quant_types.dequantize(rows, source.ggml.name)
        return floats
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as read_blocks

    return np.asarray(read_blocks(rows, GGMLQuantizationType(source.ggml.id)), np.float32)


def source_row(chunk: Chunk, row: int) -> int:
    """The row of the source that became row `row` of the chunk."""
    order = chunk.segment.order
    if not order:
        return chunk.source_row + row
    group, inside = divmod(row, len(order))
    return chunk.source_row + group * len(order) + order[inside]
