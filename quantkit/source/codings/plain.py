"""Numbers that stand by themselves in types that ggml does not compute with: float64 is read as the
nearest float32, as llama.cpp's converter has it, tables of indices as int32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantkit.errors import CorruptFile, WeightTooLarge
from quantkit.gguf.types import type_by_name
from quantkit.source.codings.parts import Rows, cut, joined
from quantkit.source.tensors import Files, SourceTensor

INTEGERS = ("I64", "I32")


def float64(t: SourceTensor) -> SourceTensor:
    """A float64 tensor as one of float32."""
    return joined(t.name, "F32", t.shape, "float64", t)


def indices(t: SourceTensor, count: int) -> SourceTensor:
    """A table of integers from 0 to `count` - 1 as one of int32."""
    rows = replace(t, shape=(t.n_rows, t.n_per_row))
    made = joined(t.name, "I32", t.shape, "indices", rows, settings=(count,))
    return replace(made, ggml=type_by_name("I32"))


def read_float64(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """A rectangle of the values in float32. Raises WeightTooLarge."""
    part = replace(t.parts[0], shape=(t.n_rows, t.n_per_row))
    found = cut(files, part, first, count, column, width)
    with np.errstate(over="ignore"):
        rows = found.astype(np.float32)
    if (lost := np.isfinite(found) & ~np.isfinite(rows)).any():
        row, at = np.argwhere(lost)[0]
        raise WeightTooLarge(
            f"tensor {t.name}, row {first + row}: {found[row, at]:g} is past what F32 holds, "
            "which F64 is read as; the checkpoint is damaged"
        )
    return rows


def read_indices(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """Rows of int32, as bytes. Raises CorruptFile for a number that is no index."""
    rows, (limit,) = files.read_rows(t.parts[0], first, count), t.settings
    if (wrong := (rows < 0) | (rows >= limit)).any():
        row, at = np.argwhere(wrong)[0]
        raise CorruptFile(
            f"{t.path}: tensor {t.name}, row {first + row}: {rows[row, at]} is not one of 0 to "
            f"{limit - 1}; the checkpoint is damaged"
        )
    return rows.astype(np.int32).view(np.uint8)
