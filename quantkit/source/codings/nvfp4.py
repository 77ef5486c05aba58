"""NVFP4: E2M1 weights, an E4M3 scale for each 16 of a row, one float32 scale for the tensor.

ggml keeps the weights and their scales as they are, in blocks of 64, and the tensor's scale in a
tensor of its own. ModelOpt has `_scale_2` to multiply with, compressed-tensors `_global_scale` to
divide by. llama.cpp: `conversion/base.py`, `_nvfp4_pack` and `_write_scales_tensor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from quantkit.errors import TensorShape
from quantkit.gguf.types import type_by_name
from quantkit.source.codings.parts import (
    BYTES,
    FLOAT4,
    FLOATS,
    Found,
    Rows,
    check_scales,
    cut,
    flat,
    float4,
    float8,
    joined,
    nibbles,
    part,
)
from quantkit.source.codings.scaled import scale_values
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor

_BLOCK = 64  # weights of ggml's block
# places of the parts in `settings`, 0 for one that is not there, and whether they divide
_SECOND, _INPUT, _DIVIDES = range(3)


def join(
    found: Found, name: str, codes_name: str, settings: Settings, scale_name: str = ""
) -> SourceTensor:
    """U8 `[rows, columns / 2]`, E4M3 `[rows, columns / 16]`, and the scales of the tensor and of
    its input, each of one value, if they are there. A stack of matrices, which has one more axis
    and may have a scale a matrix, is not kept in blocks; it may stand as `[inputs, outputs]`, with
    groups of inputs: U8 `[experts, inputs / 2, outputs]`, E4M3 `[experts, inputs / 16, outputs]`.
    """
    codes = part(found, codes_name, BYTES)
    if len(codes.shape) not in (2, 3) or codes.shape[-1] % 8:
        raise TensorShape(
            f"{codes.path}: tensor {codes.name}: shape {list(codes.shape)} found, of NVFP4 are "
            "matrices of whole groups of 16 weights read"
        )
    *lead, half = codes.shape
    scale = scale_name or f"{name}_scale"
    groups = part(found, scale, ("F8_E4M3",))
    by_input = len(lead) == 2 and groups.shape == (lead[0], lead[1] // 8, half)
    if not by_input:
        groups = part(found, scale, ("F8_E4M3",), *lead, half // 8)
    parts = [flat(codes, half), flat(groups, groups.shape[-1])]
    divides = codes_name != name  # compressed-tensors
    stem = name.removesuffix("weight") if name.endswith(".weight") else f"{name}_"
    names = (
        (f"{name}_global_scale", f"{stem}input_global_scale")
        if divides
        else (f"{scale}_2", f"{stem}input_scale")
    )
    places = []
    for scalar in names:
        places.append(len(parts) if scalar in found else 0)
        if scalar in found:
            parts.append(_one(part(found, scalar, FLOATS), prod(lead[:-1])))
    how = (*places, int(divides))
    if by_input:
        turned = (lead[0], 2 * lead[1], half)
        return joined(name, "F32", turned, "nvfp4_columns", *parts, settings=how)
    kept = 2 * half % _BLOCK == 0 and len(lead) == 1
    t = joined(name, "NVFP4", (*lead, 2 * half), "nvfp4", *parts, settings=how)
    return t if kept else widened(t)


def _one(t: SourceTensor, matrices: int) -> SourceTensor:
    """The scale of all matrices, or the scales of each, one below another."""
    if (n := t.n_rows * t.n_per_row) not in (1, matrices):
        raise TensorShape(
            f"{t.path}: tensor {t.name}: shape {list(t.shape)} found, one value expected for "
            "each matrix"
        )
    return replace(t, shape=(n, 1))


def widened(t: SourceTensor) -> SourceTensor:
    """The tensor as float32, its scales multiplied in."""
    return replace(t, ggml=type_by_name("F32"), coding="nvfp4_floats")


def read_blocks(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """Bytes `[count, blocks * 36]`: four scales without their signs, then for each of them eight
    bytes with weight j in the low and weight j + 8 in the high half of byte j (ggml
    `block_nvfp4`)."""
    codes = nibbles(files.read_rows(t.parts[0], first, count).reshape(count, -1, 4, 8))
    packed = (codes[..., :8] | codes[..., 8:] << 4).reshape(count, -1, 32)
    scales = files.read_rows(t.parts[1], first, count).reshape(count, -1, 4) & 0x7F
    check_scales(t, scales, 0x7F, first)
    return np.concatenate((scales, packed), -1).reshape(count, -1)


def read_floats(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """A rectangle of the weights in float32, as ModelOpt (weight times the product of its scales)
    or compressed-tensors (the scale divided by the tensor's) computes it."""
    left, right = column // 2, -(-(column + width) // 2)
    values = float4(cut(files, t.parts[0], first, count, left, right - left), column, width)
    scales = float8("F8_E4M3")[files.read_rows(t.parts[1], first, count)]
    scales = _with_second(files, t, first, count, scales)
    out: Rows = values * scales[:, np.arange(column, column + width) // 16]
    return out


def _with_second(files: Files, t: SourceTensor, first: int, count: int, scales: Rows) -> Rows:
    """The scales of groups of rows `first` to `first + count` and those of their matrices in
    one."""
    if place := t.settings[_SECOND]:
        second = scale_values(files, t.parts[place], 0, t.parts[place].n_rows)
        if len(second) > 1:  # of the matrix that a row is of
            second = second[np.arange(first, first + count) // t.shape[-2]]
        scales = scales / second if t.settings[_DIVIDES] else scales * second
    return scales


def read_columns(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """A rectangle of matrices whose groups go down their columns, in float32."""
    codes, groups = t.parts[:2]
    top, end = first // 2, -(-(first + count) // 2)
    held = cut(files, codes, top, end - top, column, width)
    pairs = np.stack((held & 15, held >> 4), 1).reshape(-1, width)
    group = np.arange(first, first + count) // 16
    low = int(group[0])
    scales = cut(files, groups, low, int(group[-1]) - low + 1, column, width)
    scales = float8("F8_E4M3")[scales][group - low]
    out: Rows = FLOAT4[pairs[first % 2 :][:count]] * _with_second(files, t, first, count, scales)
    return out


def scales(
    name: str, of: Sequence[SourceTensor], inputs: bool = False, times: SourceTensor | None = None
) -> SourceTensor:
    """The tensor `name` of the scales of matrices, or of their inputs: one value a matrix, 1 where
    it has none, times those of a tensor `times` if there is one."""
    which = _INPUT if inputs else _SECOND
    one = np.ones(1, np.float32)
    parts = [
        t.parts[t.settings[which]]
        if t.settings[which]
        else SourceTensor(t.name, type_by_name("F32"), (1,), t.path, 0, one)
        for t in of
    ]
    if times is not None:
        parts.append(times)
    return joined(
        name,
        "F32",
        (len(of),),
        "scales",
        *parts,
        settings=(of[0].settings[_DIVIDES], int(times is not None)),
    )


def read_scales(
    files: Files, t: SourceTensor, first: int, count: int, column: int = 0, width: int = 1
) -> Rows:
    """Float32 `[count, 1]`, to be multiplied with."""
    divides, multiplied = t.settings
    found = [scale_values(files, p, 0, 1) for p in t.parts[first : first + count]]
    values = np.concatenate(found)
    if divides:
        with np.errstate(divide="ignore"):  # infinity is found where it is written, and named
            values = np.float32(1) / values
    return values * scale_values(files, t.parts[-1], first, count) if multiplied else values


def all_ones(files: Files, t: SourceTensor) -> bool:
    """Whether llama.cpp's converter leaves the scales out: all of them are 1, or nearly."""
    tolerance = 1e-6 if t.n_rows == 1 else 1.1e-5  # numpy's allclose adds its relative 1e-5
    return all(
        abs(float(read_scales(files, t, i, 1)[0, 0]) - 1) <= tolerance for i in range(t.n_rows)
    )
