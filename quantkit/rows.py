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
    source = plan.sources[chunk.source]
    rows = files.read_rows(source, chunk.source_row, chunk.count)
    if chunk.order:
        groups = rows.reshape(-1, len(chunk.order), source.n_per_row)
        rows = groups[:, list(chunk.order)].reshape(chunk.count, -1)
    return rows


def source_row(chunk: Chunk, row: int) -> int:
    """The row of the source that became row `row` of the chunk."""
    if not chunk.order:
        return chunk.source_row + row
    group, inside = divmod(row, len(chunk.order))
    return chunk.source_row + group * len(chunk.order) + chunk.order[inside]
