"""A matrix over the pixels of several moments of which only the sum counts, as for a still image.

llama.cpp: `conversion/muse_glimmer.py`, which adds them up in float32, or in float16 if the
checkpoint is in that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantkit.source.codings.parts import Decoder, Rows, joined
from quantkit.source.tensors import Files, SourceTensor


def slabs(t: SourceTensor, moments: int) -> SourceTensor:
    """Rows of `moments` parts one after another, which divide them, as their sum, whose weights
    count as rows of one."""
    shape = (t.n_rows, t.n_per_row // moments)
    return replace(joined(t.name, "F32", shape, "slabs", t, settings=(moments,)), flat=True)


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int, of: Decoder
) -> Rows:
    """Weights `first` to `first + count`, `[count, 1]`; `of` reads the matrix."""
    (part,), moments, width = t.parts, t.settings[0], t.shape[-1]
    top, bottom = first // width, -(-(first + count) // width)
    rows = of(files, part, top, bottom - top, 0, part.n_per_row)
    wide = rows.astype(np.float32).reshape(bottom - top, moments, width)
    total = wide[:, 0]
    for i in range(1, moments):
        total = total + wide[:, i]
    kept: Rows = total.astype(np.float16) if rows.dtype == np.float16 else total
    return kept.reshape(-1, 1)[first - top * width :][:count]
