"""The rows of a chunk, as the plan wants them: read, and put in order."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantkit.checkpoint import Files
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


def source_row(chunk: Chunk, row: int) -> int:
    """The row of the source that became row `row` of the chunk."""
    order = chunk.segment.order
    if not order:
        return chunk.source_row + row
    group, inside = divmod(row, len(order))
    return chunk.source_row + group * len(order) + order[inside]
