"""Weights that are kept in 8 and 4 bits beside their scales: read as the numbers that they mean.

Several tensors of the checkpoint (`weight`, `weight_scale_inv` ...) become one `SourceTensor` that
is decoded as its rows are read: in float32, as llama.cpp's converter computes it
(`conversion/base.py`, dequant_model), or, for MXFP4, in ggml's blocks, where only bits move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from quantkit.errors import ConfigError, CorruptFile, TensorMissing, TensorShape, UnsupportedSource
from quantkit.gguf.types import type_by_name
from quantkit.source.tensors import Files, SourceTensor

Rows = np.ndarray[Any, Any]
Found = dict[str, SourceTensor]
Join = Callable[[Found, str, Mapping[str, Any]], SourceTensor]


def decoded(tensors: Sequence[SourceTensor], config: Mapping[str, Any]) -> list[SourceTensor]:
    """The tensors with those that are kept in parts put together, as `quantization_config` says.

    Each stands where the part that holds its weights stood. Raises ConfigError (a method that is
    not read), TensorMissing, TensorShape.
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return list(tensors)
    method = settings.get("quant_method")
    if method == "compressed-tensors":
        method = settings.get("format")
    if method not in _METHODS:
        known = ", ".join(sorted(_METHODS))
        raise ConfigError(f"weights are quantized by {method!r}; {known} are read")
    suffix, join = _METHODS[method]
    found = {t.name: t for t in tensors}
    out: Found = {}
    for name in list(found):
        if name.endswith(suffix) and name in found:
            joined = _joined(join, found, name.removesuffix(suffix), settings)
            for part in joined.parts:
                found.pop(part.name)
            out[joined.parts[0].name] = joined
    return [out.get(t.name, t) for t in tensors if t.name in found or t.name in out]


def _joined(join: Join, found: Found, name: str, settings: Mapping[str, Any]) -> SourceTensor:
    try:
        return join(found, name, settings)
    except (TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as e:
        raise ConfigError(
            f"quantization_config does not fit the parts of {name} ({type(e).__name__}: {e})"
        ) from None


def read(
    files: Files, t: SourceTensor, first: int, count: int, column: int = 0, width: int = 0
) -> Rows:
    """`width` columns (all if 0) of rows `first` to `first + count` of `t`, decoded."""
    whole = not width or width == t.n_per_row
    if t.coding:
        return _DECODERS[t.coding](files, t, first, count, column, width or t.n_per_row)
    if whole:
        return files.read_rows(t, first, count)
    return files.read_columns(t, first, count, column, width)


def as_float32(t: SourceTensor) -> SourceTensor:
    """A tensor of F64 as llama.cpp's converter takes it, rounded to float32 before all else."""
    flat = len(t.shape) == 1
    return replace(
        _virtual(t.name, "F32", t.shape, "f64", replace(t, raw="", flat=flat)), flat=flat
    )


def _read_f64(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    rows = files.read_rows(t.parts[0], first, count)[:, column : column + width]
    with np.errstate(over="ignore"):  # infinity is found later, and named
        return rows.astype(np.float32)


def _part(found: Found, name: str, *shape: int) -> SourceTensor:
    if name not in found:
        raise TensorMissing(f"tensor {name} is not in the checkpoint; its weights need it")
    t = found[name]
    if shape and t.shape != shape:
        raise TensorShape(f"tensor {name}: shape {list(t.shape)} found, {list(shape)} expected")
    return t


def _virtual(name: str, ggml: str, shape: tuple[int, ...], coding: str, *parts: SourceTensor,
             settings: tuple[int, ...] = ()) -> SourceTensor:  # fmt: skip
    return replace(
        parts[0], name=name, ggml=type_by_name(ggml), shape=shape, raw="", coding=coding,
        parts=parts, settings=settings,
    )  # fmt: skip


def _flat(t: SourceTensor, width: int) -> SourceTensor:
    """The tensor as a matrix of `width` columns."""
    return replace(t, shape=(t.n_rows * t.n_per_row // width, width))


# MXFP4 (gpt-oss): U8 `[..., rows, blocks, 16]`, two weights a byte, and U8 `[..., rows, blocks]`


def _join_mxfp4(found: Found, name: str, settings: Mapping[str, Any]) -> SourceTensor:
    blocks = _part(found, f"{name}_blocks")
    *lead, n, size = blocks.shape
    scales = _part(found, f"{name}_scales", *lead, n)
    if size != 16:
        raise TensorShape(f"tensor {blocks.name}: blocks of {size} bytes found, 16 expected")
    parts = _flat(blocks, 16 * n), _flat(scales, n)
    return _virtual(f"{name}.mxfp4", "MXFP4", (*lead, 32 * n), "mxfp4", *parts)


def _read_mxfp4(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """Bytes `[count, blocks * 17]`: a scale, then weight j in the low and weight j + 16 in the
    high half of byte j (ggml `block_mxfp4`), where the source has weights 2j and 2j + 1."""
    blocks, scales = (files.read_rows(part, first, count) for part in t.parts)
    blocks = blocks.reshape(count, -1, 16)
    codes = np.stack((blocks & 15, blocks >> 4), -1).reshape(count, -1, 32)
    packed = codes[..., :16] | codes[..., 16:] << 4
    return np.concatenate((scales[..., None], packed), -1).reshape(count, -1)


# FP8: E4M3 weights, one scale for each block of rows and columns


def _join_fp8(found: Found, name: str, settings: Mapping[str, Any]) -> SourceTensor:
    weight = _part(found, name)
    suffix = "_scale_inv" if f"{name}_scale_inv" in found else "_scale"
    scale = _part(found, name + suffix)
    if weight.raw != "F8_E4M3":
        raise UnsupportedSource(f"tensor {name} is {weight.raw or weight.ggml.name}, not F8_E4M3")
    *lead, rows, columns = weight.shape
    block = settings.get("weight_block_size")
    if block is None:  # one scale a tensor, or one a row
        n = scale.n_rows * scale.n_per_row
        if n not in (1, weight.n_rows):
            raise TensorShape(f"tensor {scale.name}: {n} scales found for {weight.n_rows} rows")
        block = (weight.n_rows // n, columns)
        scale, lead, rows = _flat(scale, 1), [], weight.n_rows
    height, width = block
    expected = (*lead, -(-rows // height), -(-columns // width))
    if scale.shape != expected:
        raise TensorShape(
            f"tensor {scale.name}: shape {list(scale.shape)} found, {list(expected)} expected"
        )
    return _virtual(name, "F32", weight.shape, "fp8", weight, scale,
                    settings=(height, width, rows))  # fmt: skip


@cache
def _e4m3() -> Rows:
    import ml_dtypes

    codes = np.arange(256, dtype=np.uint8)
    values: Rows = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return values


def _read_fp8(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    weight, scale = t.parts
    height, block, rows = t.settings  # `rows` of each matrix, whose last blocks may be partial
    values = _e4m3()[read(files, weight, first, count, column, width)]
    index = np.arange(first, first + count)
    scale_rows = index // rows * -(-rows // height) + index % rows // height
    at, last = scale_rows[0], scale_rows[-1]
    scales = files.read_rows(scale, int(at), int(last - at + 1)).astype(np.float32)
    columns = np.arange(column, column + width) // block
    out: Rows = values * scales[(scale_rows - at)[:, None], columns]
    return out


# GPTQ: `[in / 8, out]` codes, `[in / group, out / 8]` zeros, `[in / group, out]` scales, 4 bits


def _shifts(bits: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(0, 32, bits, dtype=np.int32)


def _join_gptq(found: Found, name: str, settings: Mapping[str, Any]) -> SourceTensor:
    bits = settings.get("bits")
    if bits not in (4, 8):
        raise ConfigError(f"GPTQ weights of {bits} bits; 4 and 8 are read")
    codes = _part(found, f"{name}.qweight")
    n_in, n_out = codes.shape[0] * 32 // bits, codes.shape[1]
    groups = _part(found, f"{name}.g_idx", n_in)
    scales = _part(found, f"{name}.scales")
    zeros = _part(found, f"{name}.qzeros", scales.shape[0], n_out * bits // 32)
    plus = 0 if settings.get("checkpoint_format", "gptq") == "gptq_v2" else 1
    return _virtual(f"{name}.weight", "F32", (n_out, n_in), "gptq", codes, zeros, scales, groups,
                    settings=(bits, plus))  # fmt: skip


def _read_gptq(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    """Columns of the packed matrix are rows of the weight. Codes are packed along its columns,
    zeros along its rows."""
    codes, zeros, scales, groups = t.parts
    bits, plus = t.settings
    per, mask = 32 // bits, (1 << bits) - 1
    top, end = column // per, -(-(column + width) // per)
    packed = read(files, codes, top, end - top, first, count)
    q = (packed[:, None] >> _shifts(bits)[:, None] & mask).reshape(-1, count)
    q = q[column - top * per :][:width]
    left, right = first // per, -(-(first + count) // per)
    packed = read(files, zeros, 0, zeros.n_rows, left, right - left)
    z = (packed[:, :, None] >> _shifts(bits) & mask).reshape(zeros.n_rows, -1)
    z = z[:, first - left * per :][:, :count] + plus
    g = read(files, groups, 0, 1, column, width).ravel()
    if g.min() < 0 or g.max() >= scales.n_rows:
        raise CorruptFile(f"{groups.path}: tensor {groups.name} names a group that is not there")
    s = read(files, scales, 0, scales.n_rows, first, count).astype(np.float32)
    return np.ascontiguousarray((s[g] * (q - z[g]).astype(np.float32)).T)


# AWQ: `[in, out / 8]` codes in an order of its own, `[in / group, out / 8]` zeros

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the weights of eight columns are


def _join_awq(found: Found, name: str, settings: Mapping[str, Any]) -> SourceTensor:
    group = settings.get("group_size")
    if settings.get("bits", settings.get("w_bit")) != 4 or not isinstance(group, int):
        raise ConfigError("AWQ weights of 4 bits in groups are read, and no others")
    codes = _part(found, f"{name}.qweight")
    n_in, n_out = codes.shape[0], codes.shape[1] * 8
    group = group if group > 0 else n_in
    scales = _part(found, f"{name}.scales", n_in // group, n_out)
    zeros = _part(found, f"{name}.qzeros", n_in // group, n_out // 8)
    return _virtual(f"{name}.weight", "F32", (n_out, n_in), "awq", codes, zeros, scales,
                    settings=(group,))  # fmt: skip


def _read_awq(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    codes, zeros, scales = t.parts
    (group,) = t.settings
    left, right = first // 8, -(-(first + count) // 8)
    low, high = column // group, -(-(column + width) // group)
    shifts = 4 * np.array(_AWQ_PLACES, np.int32)

    def unpacked(part: SourceTensor, top: int, n: int) -> Rows:
        words = read(files, part, top, n, left, right - left)
        nibbles = (words[:, :, None] >> shifts & 15).reshape(n, -1)
        return nibbles[:, first - left * 8 :][:, :count]

    g = np.arange(column, column + width) // group - low
    q, z = unpacked(codes, column, width), unpacked(zeros, low, high - low)
    s = read(files, scales, low, high - low, first, count).astype(np.float32)
    return np.ascontiguousarray((s[g] * (q - z[g]).astype(np.float32)).T)


# compressed-tensors, packed: `[out, in / 8]` codes, `[out, in / group]` scales


def _join_packed(found: Found, name: str, settings: Mapping[str, Any]) -> SourceTensor:
    groups = list((settings.get("config_groups") or {}).values())
    weights = groups[0].get("weights") if len(groups) == 1 else None
    if not weights or weights.get("strategy") != "group" or weights.get("type", "int") != "int":
        raise ConfigError("compressed-tensors of one group of settings, grouped integers, are read")
    bits, group = weights.get("num_bits"), weights.get("group_size")
    if bits not in (4, 8):
        raise ConfigError(f"compressed-tensors weights of {bits} bits; 4 and 8 are read")
    codes = _part(found, f"{name}_packed")
    scales = _part(found, f"{name}_scale")
    rows, columns = codes.shape[0], scales.shape[1] * group
    if columns > codes.shape[1] * (32 // bits):
        raise TensorShape(f"tensor {scales.name}: {columns} columns, more than {codes.name} has")
    parts = [codes, scales, _part(found, f"{name}_shape")]
    if f"{name}_zero_point" in found:
        parts.append(_part(found, f"{name}_zero_point", -(-rows * bits // 32), scales.shape[1]))
    return _virtual(name, "F32", (rows, columns), "packed", *parts, settings=(bits, group))


def _read_packed(
    files: Files, t: SourceTensor, first: int, count: int, column: int, width: int
) -> Rows:
    codes, scales, _, *zeros = t.parts
    bits, group = t.settings
    per, mask = 32 // bits, (1 << bits) - 1
    left, right = column // per, -(-(column + width) // per)
    words = read(files, codes, first, count, left, right - left)
    q = (words[:, :, None] >> _shifts(bits) & mask).reshape(count, -1)
    q = q[:, column - left * per :][:, :width]
    g = np.arange(column, column + width) // group
    s = files.read_rows(scales, first, count).astype(np.float32)[:, g]
    offset: Any = 1 << (bits - 1)
    if zeros:  # packed along the rows
        top, end = first // per, -(-(first + count) // per)
        words = files.read_rows(zeros[0], top, end - top)
        z = (words[:, None] >> _shifts(bits)[:, None] & mask).reshape(-1, words.shape[1])
        offset = z[first - top * per :][:count, g]
    return np.ascontiguousarray((q - offset).astype(np.float32) * s)


# quantization method -> the ending of the part that each weight has, and how it is put together
_METHODS: dict[Any, tuple[str, Join]] = {
    "mxfp4": ("_blocks", _join_mxfp4),
    "fp8": ("_scale_inv", _join_fp8),
    "float-quantized": ("_scale", _join_fp8),
    "gptq": (".qweight", _join_gptq),
    "awq": (".qweight", _join_awq),
    "pack-quantized": ("_packed", _join_packed),
}
_DECODERS: dict[str, Callable[[Files, SourceTensor, int, int, int, int], Rows]] = {
    "f64": _read_f64,
    "mxfp4": _read_mxfp4,
    "fp8": _read_fp8,
    "gptq": _read_gptq,
    "awq": _read_awq,
    "packed": _read_packed,
}
