"""bitsandbytes: INT8 with a scale a row (`SCB`), and four bits (NF4, FP4) with a scale for each run
of weights (`absmax`), the scales in 8 bits themselves, perhaps. llama.cpp does not read them.

The numbers are those of bitsandbytes' `int8_vectorwise_dequant` and `dequantize_4bit`, in float32.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from quantkit.errors import ConfigError, TensorShape, UnsupportedSource
from quantkit.gguf.types import type_by_name
from quantkit.source.codings.parts import (
    BYTES,
    FLOATS,
    Found,
    Rows,
    cut,
    flat,
    joined,
    nibbles,
    part,
    wrong_shape,
)
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor
from quantkit.storage.parse import parse_json

_STEP = np.float32(1 / 127)


def join_int8(found: Found, name: str, settings: Settings) -> SourceTensor:
    """I8 `[rows, columns]`, and float32 `[rows]`, the largest weight of each row."""
    weight = part(found, f"{name}.weight", ("I8",))
    if len(weight.shape) != 2:
        raise TensorShape(
            f"{weight.path}: tensor {weight.name}: {list(weight.shape)} found, a matrix expected"
        )
    largest = part(found, f"{name}.SCB", FLOATS, weight.shape[0])
    if (layout := found.pop(f"{name}.weight_format", None)) and not layout.is_remote:
        with Files([layout.path]) as files:
            if files.read_rows(layout, 0, 1).any():
                raise UnsupportedSource(
                    f"{layout.path}: tensor {layout.name} says that the rows of {weight.name} are "
                    "in tiles of a GPU of old (col32, col_turing, col_ampere), which bitsandbytes "
                    "itself no longer reads. Convert the 16-bit release instead"
                )
    return joined(weight.name, "F32", weight.shape, "bitsandbytes8", weight, largest)


def read_int8(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """A rectangle of the weights in float32."""
    weight, largest = t.parts
    codes = cut(files, weight, first, count, column, width).view(np.int8).astype(np.float32)
    out: Rows = codes * files.read_rows(largest, first, count).astype(np.float32) * _STEP
    return out


def join_four_bits(found: Found, name: str, settings: Settings) -> SourceTensor | None:
    """U8 codes, the first weight in the high half of a byte, over the whole matrix; what its shape
    is says a table of JSON beside it. Raises ConfigError, TensorMissing, TensorShape."""
    stem = f"{name}.quant_state.bitsandbytes__"
    stated = next((found[stem + kind] for kind in ("nf4", "fp4") if stem + kind in found), None)
    if name not in found or stated is None:
        return None
    state = _state(stated)
    rows, columns = state["shape"]
    size = state["blocksize"]
    if columns % 2 or size < 1:
        raise TensorShape(f"{stated.path}: tensor {stated.name}: {columns} weights a row")
    codes = found[name]
    if not codes.raw:  # bytes in numbers of more of them (bnb_4bit_quant_storage)
        n = codes.n_rows * codes.row_bytes
        codes = replace(codes, ggml=type_by_name("I8"), raw="U8", shape=(n, 1))
    codes = part({name: codes}, name, BYTES)
    absmax = part(found, f"{name}.absmax", ("U8", *FLOATS))
    if prod(codes.shape) != rows * columns // 2:
        raise wrong_shape(codes, (rows * columns // 2, 1))
    nests = f"{name}.nested_absmax" in found
    if (absmax.raw == "U8") != nests:
        raise ConfigError(
            f"{absmax.path}: tensor {absmax.name} is {absmax.raw or absmax.ggml.name}: scales of "
            "8 bits have nested_absmax beside them, and no others do"
        )
    if prod(absmax.shape) != -(-rows * columns // size):
        raise wrong_shape(absmax, (-(-rows * columns // size),))
    parts = [
        flat(codes, columns // 2),
        flat(absmax, 1),
        part(found, f"{name}.quant_map", FLOATS, 16),
    ]
    nested, offset = 0, 0.0
    if nests:
        nested, offset = state["nested_blocksize"], float(state["nested_offset"])
        outer = part(found, f"{name}.nested_absmax", FLOATS, -(-prod(absmax.shape) // nested))
        parts += [flat(outer, 1), part(found, f"{name}.nested_quant_map", FLOATS, 256)]
    bits = int(np.float32(offset).view(np.int32))
    del found[stated.name]
    return joined(
        name, "F32", (rows, columns), "bitsandbytes4", *parts, settings=(size, nested, bits)
    )


def _state(t: SourceTensor) -> dict[str, Any]:
    with Files([t.path]) as files:
        data = files.read_rows(flat(t, 1), 0, t.n_rows * t.n_per_row).tobytes()
    found = parse_json(data, f"{t.path}: tensor {t.name}")
    if not isinstance(found, dict):
        raise ConfigError(f"{t.path}: tensor {t.name} is no table")
    return found


def read_four_bits(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """A rectangle of the weights in float32."""
    codes, absmax, values, *nested = t.parts
    size, nested_size, bits = t.settings
    left, right = column // 2, -(-(column + width) // 2)
    held = cut(files, codes, first, count, left, right - left)
    q = nibbles(held >> 4 | held << 4)[:, column % 2 :][:, :width]
    at = (np.arange(first, first + count) * t.n_per_row)[:, None]
    runs = (at + np.arange(column, column + width)) // size
    low, high = int(runs[0, 0]), int(runs[-1, -1])
    scales = files.read_rows(absmax, low, high - low + 1)[:, 0]
    if nested:
        outer = np.arange(low, high + 1) // nested_size
        begin, end = int(outer[0]), int(outer[-1])
        factors = files.read_rows(nested[0], begin, end - begin + 1)[outer - begin, 0]
        table = files.read_rows(nested[1], 0, 256)[:, 0]
        scales = table[scales] * factors + np.int32(bits).view(np.float32)
    table = files.read_rows(values, 0, 16)[:, 0]
    out: Rows = table[q] * scales.astype(np.float32)[runs - low]
    return out
