"""The rows of a chunk, as the plan wants them: read, put in order, and edited where it says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isnan
from typing import Any

import numpy as np

from quantkit.gguf.tensor_names import no_bound
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Chunk
from quantkit.source.codings import read
from quantkit.source.tensors import Files, SourceTensor
from quantkit.source.torch_functions import torch_exp, torch_softplus

Rows = np.ndarray[Any, Any]


def bounded(rows: Rows, tensor: str) -> Rows:
    """The rows, with 0 for an infinity that says of a bound that there is none."""
    none = no_bound(tensor)
    return rows if isnan(none) else np.where(rows == none, rows.dtype.type(0), rows)


def fetch(chunk: Chunk, plan: Plan, files: Files) -> Rows:
    """`[count, row length]` in float32, float16 or bfloat16; or blocks of bytes as they are stored.

    Raises CorruptFile if the file ends early.
    """
    s, count = chunk.segment, chunk.count
    source, place = plan.sources[s.source], source_rows(chunk)
    if s.height:
        column, width = s.column + chunk.start * s.step, (count - 1) * s.step + 1
        rows = read(files, source, *place, column, width)[:, :: s.step].T
    else:
        rows = read(files, source, *place)[:: s.step]
    if s.order:
        rows = rows.reshape(-1, len(s.order), rows.shape[1])[:, list(s.order)]
        rows = rows.reshape(count, -1)
    for name, *values in s.edits:
        if name == "unit_columns":
            rows = _computable(rows) / (_column_norms(files, source) + np.float32(1e-7))
        elif name == "ternary":
            rows = _ternary(_computable(rows), _size(files, source))
        elif name == "centered":
            rows = rows - _mean(files, source)
        else:
            rows = EDITS[str(name)](rows, *values)
    return np.ascontiguousarray(rows)


def source_rows(chunk: Chunk) -> tuple[int, int]:
    """The rows of the source that a chunk is made of: the first, and how many."""
    s = chunk.segment
    if s.height:
        return s.source_row, s.height
    return s.source_row + chunk.start * s.step, (chunk.count - 1) * s.step + 1


def _computable(rows: Rows) -> Rows:
    """llama.cpp's converter computes in float32, or in float16 where that is the source's."""
    return rows if rows.dtype == np.float16 else rows.astype(np.float32)


def _add(rows: Rows, x: float) -> Rows:
    """Plus a number, which torch rounds to the rows' dtype first (a factor it does not)."""
    rows = _computable(rows)
    out: Rows = (rows.astype(np.float32) + rows.dtype.type(x).astype(np.float32)).astype(rows.dtype)
    return out


def _scale(rows: Rows, *factors: float) -> Rows:
    """Times each factor in turn, in float32; float16 is rounded after each, as torch does."""
    rows = _computable(rows)
    for x in factors:
        rows = (rows.astype(np.float32) * np.float32(x)).astype(rows.dtype)
    return rows


def _times(rows: Rows, x: float) -> Rows:
    """Times a factor, in float32 whatever the source's dtype."""
    out: Rows = rows.astype(np.float32) * np.float32(x)
    return out


def _float32(rows: Rows) -> Rows:
    """In float32, whatever the source's dtype: what follows is not rounded to float16."""
    return rows.astype(np.float32)


def _exp(rows: Rows) -> Rows:
    with np.errstate(over="ignore"):  # an infinity is refused as it is written
        return torch_exp(rows.astype(np.float32)).astype(_computable(rows[:0]).dtype)


def _minus_exp(rows: Rows) -> Rows:
    return -_exp(rows)


def _softplus(rows: Rows) -> Rows:
    return torch_softplus(rows.astype(np.float32)).astype(_computable(rows[:0]).dtype)


def _heads_across(rows: Rows, groups: int, heads: int) -> Rows:
    """Channels `[groups, heads, n]` of each row in the order `[heads, groups, n]`."""
    out: Rows = rows.reshape(len(rows), groups, heads, -1).swapaxes(1, 2).reshape(rows.shape)
    return out


@lru_cache(maxsize=1)
def _column_norms(files: Files, source: SourceTensor) -> Rows:
    """The length of every column of a matrix: squares added row after row in float32, as
    `torch.norm` adds those of a small one."""
    total = np.zeros((1, source.n_per_row), np.float32)
    step = max((1 << 20) // source.n_per_row, 1)
    for first in range(0, source.n_rows, step):
        rows = read(files, source, first, min(step, source.n_rows - first)).astype(np.float32)
        total = np.add.reduce(np.concatenate((total, rows * rows)), axis=0, keepdims=True)
    out: Rows = np.sqrt(total)
    return out


@lru_cache(maxsize=4)
def _size(files: Files, source: SourceTensor) -> Any:
    """The mean of a matrix's magnitudes, 1e-5 at least. torch adds them in float32, in an order
    that depends on the number of its threads; here they are added in float64."""
    total, step = 0.0, max((1 << 20) // source.n_per_row, 1)
    for first in range(0, source.n_rows, step):
        rows = read(files, source, first, min(step, source.n_rows - first)).astype(np.float32)
        total += float(np.abs(rows).sum(dtype=np.float64))
    mean = np.float32(total / (source.n_rows * source.n_per_row))
    return max(mean, np.float32(1e-5))


def _ternary(rows: Rows, scale: Any) -> Rows:
    """Each weight as -1, 0 or 1 times the scale."""
    inverse = np.float32(1) / scale
    values = np.clip(np.rint(rows.astype(np.float32) * inverse), -1, 1)
    out: Rows = (values / inverse).astype(rows.dtype)
    return out


def torch_sum(x: Rows) -> Any:
    """The sum of a vector in float32, added in the order of torch's kernel: eight lanes (one for
    fewer weights than that) of four partial sums, which spill into larger ones every so often."""
    lanes, parts, levels = 8 if len(x) >= 8 else 1, 4, 4
    rows = x[: len(x) // lanes * lanes].astype(np.float32).reshape(-1, lanes)
    steps = len(rows) // parts
    power = max(4, (steps - 1).bit_length() // levels if steps > 1 else 0)
    sums = np.zeros((levels, parts, lanes), np.float32)
    for i, row in enumerate(rows[: steps * parts].reshape(steps, parts, lanes), 1):
        sums[0] += row
        for level in range(1, levels):
            if i % (1 << level * power):
                break
            sums[level] += sums[level - 1]
            sums[level - 1] = 0
    lane_sums = sums[0] + sums[1] + sums[2] + sums[3]
    for row in rows[steps * parts :]:
        lane_sums[0] += row
    total = np.float32(0)
    vector = lane_sums[0] + lane_sums[1] + lane_sums[2] + lane_sums[3]
    for value in (*x[rows.size :].astype(np.float32), *vector):
        total += value
    return total


def _mean(files: Files, source: SourceTensor) -> Any:
    """The mean of a whole vector, as `torch.mean` rounds it to the vector's own dtype."""
    x = read(files, source, 0, source.n_rows).ravel()
    return (torch_sum(x) / np.float32(len(x))).astype(x.dtype)


# what a segment's `edits` may name, beside "unit_columns", "ternary" and "centered", which need the
# whole tensor
EDITS: dict[str, Callable[..., Rows]] = {
    "add": _add,
    "scale": _scale,
    "times": _times,
    "float32": _float32,
    "exp": _exp,
    "minus_exp": _minus_exp,
    "softplus": _softplus,
    "heads_across": _heads_across,
}


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
    """The row of the source that became row `row` of the chunk; its column for a transpose."""
    s = chunk.segment
    if s.order:
        group, inside = divmod(row, len(s.order))
        row = group * len(s.order) + s.order[inside]
    return (s.column if s.height else s.source_row) + (chunk.start + row) * s.step
