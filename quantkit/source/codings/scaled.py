"""FP8 and INT8: each weight a code of one byte, times the scale of its tensor, row or block.

llama.cpp: `conversion/base.py`, `dequant_simple`; `conversion/mimo.py`, `_tp_aware_qkv_dequant`;
`conversion/deepseek.py`, `dequant_fp8_weight`. All compute in float32, code times scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from quantkit.errors import TensorMissing, TensorShape, UnsupportedSource
from quantkit.source.codings.parts import (
    FLOATS,
    Found,
    Rows,
    cut,
    flat,
    float8,
    joined,
    part,
    wrong_shape,
)
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor

CODES = ("F8_E4M3", "F8_E5M2")
_SCALES = (*FLOATS, "F64", "F8_E8M0", "U8")
RANKS = (8, 4)  # tensor-parallel ranks that rows may be ordered by; llama.cpp tries no others
# rows and columns of a block where no key says it: of FP8 as DeepSeek has it, of MXFP8
BLOCK, MX_BLOCK = (128, 128), (1, 32)


def join(found: Found, name: str, scale_name: str, settings: Settings) -> SourceTensor:
    """The weight `name`, of codes `[..., rows, columns]`, and its scales: one, one a row, one a
    column, or one a block of each matrix.

    `settings` of the tensor: rows and columns that have one scale, and the rows of a matrix, whose
    last blocks may be partial. Raises TensorMissing, TensorShape, UnsupportedSource.
    """
    weight, scale = found[name], part(found, scale_name, _SCALES)
    if weight.raw not in (*CODES, "I8"):
        cure = "delete the scales if they are left over"
        if weight.raw:  # Quark's and ModelOpt's integers of 4 bits
            cure = "integers packed so are not read: convert the 16-bit release instead"
        raise UnsupportedSource(
            f"{weight.path}: tensor {name} is {weight.raw or weight.ggml.name} and has scales "
            f"({scale_name}), which only F8_E4M3, F8_E5M2 and I8 are read with; {cure}"
        )
    if len(weight.shape) < 2 or 0 in weight.shape:
        raise TensorShape(
            f"{weight.path}: tensor {name}: shape {list(weight.shape)} found, and scales beside "
            "it, which matrices have; download the checkpoint again"
        )
    if settings.method == "fbgemm_fp8" and _by_output(weight, scale):
        rows = weight.shape[1]
        height, width = rows, 1
    else:
        height, width, rows = _geometry(weight, scale, settings.block(name))
    per_row = -(-weight.shape[-1] // width)
    parts = [weight, flat(scale, per_row)]
    zeros = f"{name}_zero_point"
    asked = weight.raw == "I8" and settings.weights(name).get("symmetric") is False
    if zeros in found or asked:
        parts.append(flat(part(found, zeros, ("I8", *FLOATS), *scale.shape), per_row))
    return joined(name, "F32", weight.shape, "scaled", *parts, settings=(height, width, rows))


def _by_output(weight: SourceTensor, scale: SourceTensor) -> bool:
    """Whether scales are `[experts, outputs, 1]`, of experts that are `[experts, inputs, outputs]`:
    transformers' fbgemm_fp8 keeps the `down_proj` of Llama 4 so."""
    return len(weight.shape) == 3 and scale.shape == (weight.shape[0], weight.shape[2], 1)


def _geometry(
    weight: SourceTensor, scale: SourceTensor, block: tuple[int, int] | None
) -> tuple[int, int, int]:
    """Rows and columns that have one scale, and the rows after which blocks begin anew."""
    *lead, rows, columns = weight.shape
    shape = scale.shape
    if len(shape) == 4 and len(weight.shape) == 2 and shape[1::2] == (1, 1):  # [rows, 1, cols, 1]
        shape = shape[::2]
    guesses = (BLOCK, MX_BLOCK) if scale.raw else (BLOCK,)
    for height, width in (block, *guesses) if block else ():
        if shape == (*lead, -(-rows // height), -(-columns // width)):
            return height, width, rows
    if (n := prod(scale.shape)) == 1:
        return weight.n_rows, columns, weight.n_rows
    per_axis = (*shape, *[1] * (len(weight.shape) - len(shape)))  # as torch broadcasts [rows]
    if per_axis[:-2] == tuple(lead) and per_axis[-2] in (1, rows) and per_axis[-1] in (1, columns):
        return rows // per_axis[-2], columns // per_axis[-1], rows
    for height, width in () if block else guesses:
        if shape == (*lead, -(-rows // height), -(-columns // width)):
            return height, width, rows
    height, width = block or BLOCK
    for ranks in RANKS:  # the blocks of each rank begin anew
        padded = ranks * -(-rows // ranks // height)
        if not lead and rows % ranks == 0 and shape == (padded, -(-columns // width)):
            return height, width, rows // ranks
    if block is None:
        raise TensorShape(
            f"{scale.path}: tensor {scale.name}: {n} scales found for {weight.n_rows} rows of "
            f"{weight.name}; quantization_config does not tell the size of a block"
        )
    raise wrong_shape(scale, (*lead, -(-rows // height), -(-columns // width)))


def by_rank(t: SourceTensor, heights: Sequence[int]) -> SourceTensor:
    """A joined tensor whose rows are ordered by tensor-parallel rank, in the order of one rank.

    Each rank has its share of the rows of every one of several matrices (`heights`), one after
    another. How many ranks there are is seen from the scales. Raises TensorShape.
    """
    height, width, _ = t.settings[:3]
    scales = t.parts[1]
    for ranks in RANKS if height > 1 else ():
        rows = t.n_rows // ranks
        if t.n_rows % ranks == 0 and scales.n_rows == ranks * -(-rows // height):
            if any(n % ranks for n in heights):
                raise TensorShape(
                    f"{t.path}: tensor {t.name}: matrices of {list(heights)} rows cannot be those "
                    f"of {ranks} tensor-parallel ranks, which its {scales.n_rows} rows of scales "
                    "ask for"
                )
            return replace(t, settings=(height, width, rows, *heights))
    return t


def check_order(t: SourceTensor) -> None:
    """Refuse rows in the order of ranks where no family says which they are. Raises TensorShape."""
    if t.coding == "scaled" and len(t.settings) == 3 and t.n_rows > t.settings[2] != t.shape[-2]:
        raise wrong_shape(t.parts[1], (-(-t.n_rows // t.settings[0]), t.parts[1].n_per_row))


def read(files: Files, t: SourceTensor, first: int, count: int, column: int, width: int) -> Rows:
    """A rectangle of the weights in float32."""
    runs = list(_runs(t, first, count))
    if len(runs) == 1:
        return _read_run(files, t, *runs[0], column, width)
    return np.concatenate([_read_run(files, t, *run, column, width) for run in runs])


def _runs(t: SourceTensor, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Where rows `first` to `first + count` lie in the file: runs of (row, rows)."""
    _, _, per_rank, *heights = t.settings
    if not heights:
        yield first, count
        return
    ranks = t.n_rows // per_rank
    begin = before = 0  # of the matrix, and of its rows in a rank
    for height in heights:
        share = height // ranks
        row, end = max(first, begin), min(first + count, begin + height)
        while row < end:
            rank, inside = divmod(row - begin, share)
            n = min(share - inside, end - row)
            yield rank * per_rank + before + inside, n
            row += n
        begin, before = begin + height, before + share


def _read_run(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    height, block, rows = t.settings[:3]
    weight, scale, *zeros = t.parts
    codes = cut(files, weight, first, count, column, width)
    index = np.arange(first, first + count)
    scale_rows = index // rows * -(-rows // height) + index % rows // height
    at, last = int(scale_rows[0]), int(scale_rows[-1])
    place = (scale_rows - at)[:, None], np.arange(column, column + width) // block
    scales = scale_values(files, scale, at, last - at + 1)[place]
    if weight.raw in CODES:
        values: Rows = float8(weight.raw)[codes]
    else:
        values = codes.view(np.int8).astype(np.float32)
    for t in zeros:
        zero = files.read_rows(t, at, last - at + 1)
        values = values - (zero.view(np.int8) if t.raw == "I8" else zero).astype(np.float32)[place]
    values = values * scales
    return values


def scale_values(files: Files, scale: SourceTensor, first: int, count: int) -> Rows:
    """Rows of a part that holds scales, in float32: floats, or powers of two (E8M0)."""
    rows = files.read_rows(scale, first, count)
    if scale.raw in ("F8_E8M0", "U8"):
        rows = float8("F8_E8M0")[rows]
    return rows.astype(np.float32, copy=False)


def missing_weight(name: str, scale: SourceTensor) -> TensorMissing:
    """The error of scales whose weight is not there."""
    return TensorMissing(
        f"{scale.path}: tensor {name} is not in the checkpoint, and its scales are "
        f"({scale.name}); download the checkpoint again"
    )
