"""Two matrices that become one: the columns of the second follow those of the first.

llama.cpp: `conversion/qwen4exp.py`, which joins `fc_embedding` and `fc_hidden`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantkit.errors import TensorShape
from quantkit.gguf.types import type_by_name
from quantkit.source.codings.parts import Decoder, Rows, joined
from quantkit.source.tensors import Files, SourceTensor


def beside(a: SourceTensor, b: SourceTensor) -> SourceTensor:
    """One matrix of the name of `a`; it stands where the later of the two does. Raises TensorShape:
    they are not of as many rows."""
    if a.raw or b.raw or a.shape[:-1] != b.shape[:-1]:
        raise TensorShape(
            f"{b.path}: tensor {b.name}: {b.raw or b.ggml.name} {list(b.shape)} found; it stands "
            f"beside {a.name}, {a.raw or a.ggml.name} {list(a.shape)}"
        )
    shape = (*a.shape[:-1], a.shape[-1] + b.shape[-1])
    later = max((a, b), key=lambda t: (t.path.name, t.name))
    made = joined(a.name, "F32", shape, "beside", a, b)
    same = type_by_name(a.ggml.name) if a.ggml is b.ggml and not (a.coding or b.coding) else None
    return replace(made, path=later.path, ggml=same or made.ggml)


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int, of: Decoder
) -> Rows:
    """A rectangle of both, in the dtype that both have, or float32; `of` reads one of them."""
    found, at = [], 0
    for part in t.parts:
        left, right = max(column - at, 0), min(column + width - at, part.n_per_row)
        if left < right:
            found.append(of(files, part, first, count, left, right - left))
        at += part.n_per_row
    if len({rows.dtype for rows in found}) > 1:
        found = [rows.astype(np.float32) for rows in found]
    return np.concatenate(found, axis=1)
