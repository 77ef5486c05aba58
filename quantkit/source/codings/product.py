"""Two tensors of which only the product counts, weight by weight: Kimi-K3's norms and projections.

llama.cpp: `conversion/kimi_k3.py`, `_try_fuse_res`, which multiplies in float32.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantkit.errors import TensorShape
from quantkit.source.codings.parts import Decoder, Rows, joined
from quantkit.source.tensors import Files, SourceTensor


def product(a: SourceTensor, b: SourceTensor) -> SourceTensor:
    """One tensor of the name of `a`, with one axis; it stands where the later of the two does.
    Raises TensorShape: they are not of as many weights."""
    n = a.n_rows * a.n_per_row
    if n != b.n_rows * b.n_per_row:
        raise TensorShape(
            f"{b.path}: tensor {b.name}: shape {list(b.shape)} found; it is multiplied by "
            f"{a.name}, of shape {list(a.shape)}"
        )
    last_first = sorted((a, b), key=lambda t: (t.path.name, t.name), reverse=True)
    parts = (replace(t, flat=True) for t in last_first)
    return joined(a.name, "F32", (n,), "product", *parts)


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int, of: Decoder
) -> Rows:
    """Weights `first` to `first + count`, in float32 `[count, 1]`; `of` reads one of the two."""
    a, b = (of(files, part, first, count, 0, 1).astype(np.float32) for part in t.parts)
    out: Rows = a * b
    return out
