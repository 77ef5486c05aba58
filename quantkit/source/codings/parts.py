"""What the codings share: the parts of a weight are looked for and checked, and become one tensor.

A coding `join`s parts from headers alone, and reads any rectangle of the weights that they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.errors import NonFiniteWeight, TensorMissing, TensorShape, UnsupportedSource
from quantkit.gguf.types import type_by_name
from quantkit.source.tensors import Files, SourceTensor

if TYPE_CHECKING:
    from quantkit.source.codings.settings import Settings

Rows = np.ndarray[Any, Any]
Found = dict[str, SourceTensor]
# the tensors that are not joined yet, the weight's name, what the config says; None if it is none
Join = Callable[[Found, str, "Settings"], "SourceTensor | None"]
# the files, a joined tensor, its first row and their count, the first column and their count
Decoder = Callable[[Files, SourceTensor, int, int, int, int], Rows]


# stored dtypes of parts; "" are F32, F16 and BF16
FLOATS, BYTES, WORDS, INTEGERS = ("",), ("U8", "I8"), ("I32",), ("I32", "I64")


def part(found: Found, name: str, of: tuple[str, ...], *shape: int) -> SourceTensor:
    """The part of that name, of a dtype of `of`, and of `shape` if one is given.

    Raises TensorMissing, UnsupportedSource, TensorShape.
    """
    if name not in found:
        raise TensorMissing(f"tensor {name} is not in the checkpoint; its weights need it")
    t = found[name]
    if t.raw not in of:
        raise UnsupportedSource(
            f"{t.path}: tensor {name} is {t.raw or t.ggml.name}; as a part of its weights, "
            f"{' or '.join(kind or 'F32, F16 or BF16' for kind in of)} is read"
        )
    if shape and t.shape != shape:
        raise wrong_shape(t, shape)
    if 0 in t.shape:
        raise TensorShape(f"{t.path}: tensor {name} is empty; download the checkpoint again")
    return t


def wrong_shape(t: SourceTensor, expected: tuple[int, ...]) -> TensorShape:
    """The error of a part that does not fit the others."""
    return TensorShape(
        f"{t.path}: tensor {t.name}: shape {list(t.shape)} found, {list(expected)} expected; the "
        "parts of one weight are of different checkpoints, or quantization_config is of another"
    )


def joined(
    name: str,
    ggml: str,
    shape: tuple[int, ...],
    coding: str,
    *parts: SourceTensor,
    settings: tuple[int, ...] = (),
) -> SourceTensor:
    """One tensor made of `parts`, of which the first holds its weights."""
    return replace(
        parts[0],
        name=name,
        ggml=type_by_name(ggml),
        shape=shape,
        raw="",
        coding=coding,
        parts=parts,
        settings=settings,
    )


def flat(t: SourceTensor, width: int) -> SourceTensor:
    """The tensor as a matrix of `width` columns."""
    return replace(t, shape=(t.n_rows * t.n_per_row // width, width))


def cut(files: Files, t: SourceTensor, first: int, count: int, column: int, width: int) -> Rows:
    """`width` columns of rows `first` to `first + count` of a part, as they are stored."""
    if width == t.n_per_row:
        return files.read_rows(t, first, count)
    return files.read_columns(t, first, count, column, width)


def check_scales(t: SourceTensor, scales: Rows, nan: int, first: int) -> None:
    """No scale of blocks from row `first` on is the code of NaN. Raises NonFiniteWeight."""
    bad = (scales == nan).any(axis=tuple(range(1, scales.ndim)))
    if bad.any():
        raise NonFiniteWeight(
            f"{t.path.name}: tensor {t.name} has NaN as a scale in row "
            f"{first + int(bad.argmax())}; the checkpoint is damaged"
        )


@cache
def float8(dtype: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The value of every code of `F8_E4M3`, `F8_E5M2` or `F8_E8M0`, in float32."""
    import ml_dtypes

    codes = np.arange(256, dtype=np.uint8)
    if dtype == "F8_E8M0":  # 2^(code - 127), the smallest of which float32 has as a subnormal
        powers = np.ldexp(np.ones(255, np.float32), np.arange(-127, 128))
        return np.append(powers, np.float32(np.nan))
    types = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
    return np.asarray(codes.view(types[dtype]), np.float32)


# the value of every code of an E2M1 float, times 1 (ggml's table has them times 2)
FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FLOAT4 = np.concatenate((FLOAT4, -FLOAT4))


def nibbles(codes: Rows) -> Rows:
    """The 4-bit codes of each row of bytes: the low half of a byte comes first."""
    return np.stack((codes & 15, codes >> 4), -1).reshape(*codes.shape[:-1], -1)


def float4(codes: Rows, column: int, width: int) -> Rows:
    """Weights in float32 from bytes that begin at an even column at or before `column`."""
    values: Rows = FLOAT4[nibbles(codes)[:, column % 2 :][:, :width]]
    return values
