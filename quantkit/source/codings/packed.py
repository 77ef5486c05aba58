"""compressed-tensors' packed integers: `[out, in / 8]` codes, `[out, groups]` scales for 4 bits.

The shape is in a tensor of its own, since the last word of a row may be partly empty. Zeros, where
there are any, are packed along the rows. llama.cpp: `conversion/base.py`, `dequant_packed`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from quantkit.errors import ConfigError, CorruptFile, TensorShape
from quantkit.source.codings.parts import FLOATS, INTEGERS, WORDS, Found, Rows, cut, joined, part
from quantkit.source.codings.settings import Settings
from quantkit.source.tensors import Files, SourceTensor

_STRATEGIES = ("group", "channel", "tensor")
_IN_ORDER = ("group", "dynamic", True)  # groups are of columns in the order of their activations


def join(found: Found, name: str, settings: Settings) -> SourceTensor:
    """The parts of `name`. Raises ConfigError, TensorMissing, TensorShape."""
    weights = settings.weights(name)
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    known = strategy in _STRATEGIES and weights.get("type", "int") == "int"
    if not known or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ConfigError(
            f"{settings.where}: the config_groups of quantization_config do not say how "
            f"{name}_packed is read: integers of 2 to 8 bits by group, channel or tensor are "
            f"(num_bits {bits}, strategy {strategy!r} found). Convert the 16-bit release instead"
        )
    codes, scales = part(found, f"{name}_packed", WORDS), part(found, f"{name}_scale", FLOATS)
    parts = [codes, scales, part(found, f"{name}_shape", INTEGERS, 2)]
    if len(codes.shape) != 2 or len(scales.shape) not in (1, 2):
        raise TensorShape(
            f"{codes.path}: tensor {codes.name}: {list(codes.shape)} with scales "
            f"{list(scales.shape)} found, matrices expected"
        )
    rows, n_groups = codes.shape[0], scales.shape[1] if len(scales.shape) == 2 else 1
    per = 32 // bits
    held = codes.shape[1] * per  # weights of a row, with those that fill its last word
    group = weights["group_size"] if strategy == "group" else held
    columns = n_groups * group
    if not held - per < columns <= held or scales.shape[0] not in (1, rows):
        raise TensorShape(
            f"{scales.path}: tensor {scales.name}: {list(scales.shape)} scales for {group} weights "
            f"each, which {codes.name} with {rows} rows of at most {held} weights does not have"
        )
    zero_at = group_at = 0
    if f"{name}_zero_point" in found or weights.get("symmetric") is False:
        zero_at = len(parts)
        parts.append(part(found, f"{name}_zero_point", WORDS, -(-rows // per), n_groups))
    if (
        f"{name}_g_idx" in found or weights.get("actorder") in _IN_ORDER
    ):  # columns of a group are not side by side
        group_at = len(parts)
        parts.append(part(found, f"{name}_g_idx", INTEGERS, columns))
    return joined(
        name, "F32", (rows, columns), "packed", *parts, settings=(bits, group, zero_at, group_at)
    )


def check_shapes(tensors: Iterable[SourceTensor]) -> None:
    """The shape that each says it has, in a tensor of its own, is that of its codes and scales.

    Of files on the Hub it is not asked: a request for each weight would be far too many. Raises
    TensorShape.
    """
    here = [t for t in tensors if t.coding == "packed" and not t.is_remote]
    with Files(t.parts[2].path for t in here) as files:
        for t in here:
            said = t.parts[2]
            rows, columns = cut(files, said, 0, 1, 0, 2).ravel().tolist()
            if t.shape != (rows, columns):
                raise TensorShape(
                    f"{said.path}: tensor {said.name} says [{rows}, {columns}], and the codes and "
                    f"scales beside it are of {list(t.shape)}: they are of different weights"
                )


def read(files: Files, t: SourceTensor, first: int, count: int, column: int, width: int) -> Rows:
    """A rectangle of the weights in float32."""
    codes, scales = t.parts[:2]
    bits, group, zero_at, group_at = t.settings
    per, mask = 32 // bits, (1 << bits) - 1
    left, right = column // per, -(-(column + width) // per)
    words = cut(files, codes, first, count, left, right - left)
    q = (words[:, :, None] >> shifts(bits) & mask).reshape(count, -1)
    q = q[:, column - left * per :][:, :width]
    g = np.arange(column, column + width) // group
    if group_at:
        g = cut(files, t.parts[group_at], 0, 1, column, width).ravel()
        if g.min() < 0 or g.max() >= scales.n_per_row:
            named = t.parts[group_at]
            raise CorruptFile(f"{named.path}: tensor {named.name} names a group that is not there")
    s = files.read_rows(scales, *((first, count) if scales.n_rows > 1 else (0, 1)))
    offset: Any = 1 << (bits - 1)
    if zero_at:  # packed along the rows
        top, end = first // per, -(-(first + count) // per)
        words = files.read_rows(t.parts[zero_at], top, end - top)
        z = (words[:, None] >> shifts(bits)[:, None] & mask).reshape(-1, words.shape[1])
        offset = z[first - top * per :][:count, g]
    return np.ascontiguousarray((q - offset).astype(np.float32) * s.astype(np.float32)[:, g])


def shifts(bits: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Where in a word of 32 bits its codes begin; bits that make no whole code are left empty."""
    return np.arange(0, 32 // bits * bits, bits, dtype=np.int32)
