"""What the array code needs beyond arithmetic, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any  # an np.ndarray or a torch.Tensor

_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the integer, half to even, in the low bits


def namespace(x: Array) -> Any:
    """The array-API namespace of `x`: NumPy itself, else array-api-compat's."""
    if isinstance(x, np.ndarray):
        return np
    import array_api_compat

    return array_api_compat.array_namespace(x)


def contiguous(a: Array) -> Array:
    """`a` in C order."""
    return np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a.contiguous()


def number(value: float, like: Array) -> Array:
    """A number to divide, or to divide by: for torch as a tensor.

    With a bare number torch multiplies by a reciprocal, which rounds otherwise.
    """
    if isinstance(like, np.ndarray):
        return value
    xp = namespace(like)
    return xp.full((1,), value, dtype=xp.float32, device=like.device)


def square_root(a: Array) -> Array:
    """The float32 nearest to the root; torch's own float32 root is not always that."""
    if isinstance(a, np.ndarray):
        return np.sqrt(a)
    xp = namespace(a)
    return xp.astype(xp.sqrt(xp.astype(a, xp.float64)), xp.float32)


def sum_rows(a: Array) -> Array:
    """`[n, lanes]` -> `[lanes]`, added row after row, as a C loop does."""
    if isinstance(a, np.ndarray):
        # Sequential along the first axis of a C-contiguous array (the last one is summed pairwise,
        # and so is a single column).
        if a.shape[1] == 1:
            return np.add.accumulate(a, axis=0)[-1]
        return np.add.reduce(np.ascontiguousarray(a), axis=0)
    total = a[0]
    for row in range(1, a.shape[0]):
        total = total + a[row]
    return total


def lowest(x: Array, axis: int) -> Array:
    """Minimum along `axis`, which is kept: the first of equals, so that a zero keeps its sign."""
    xp = namespace(x)
    low = xp.min(x, axis=axis, keepdims=True)
    if not bool(xp.any(low == 0)):
        return low
    first = xp.argmax(xp.astype(x == low, xp.int8), axis=axis)
    return xp.take_along_axis(x, xp.expand_dims(first, axis=axis), axis=axis)


def clamp(a: Array, low: float | None, high: float | None) -> Array:
    """`a` within the bounds, in place."""
    return np.clip(a, low, high, out=a) if isinstance(a, np.ndarray) else a.clamp_(low, high)


def selector(mask: Array) -> Callable[[Array, Array], Array]:
    """`choose(a, b)`: float32 `a` where `mask`, else `b`.

    NumPy's own `where` branches on every element; bits do not.
    """
    if not isinstance(mask, np.ndarray):
        return functools.partial(namespace(mask).where, mask)
    ones = mask.astype(np.int32)
    np.negative(ones, out=ones)

    def choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        bits = b.view(np.int32)
        mixed = a.view(np.int32) ^ bits
        mixed &= ones
        mixed ^= bits
        return mixed.view(np.float32)

    return choose


def nearest_int(v: Array) -> Array:
    """ggml `nearest_int`: float32 -> int32, half to even; out of range, what its bits give."""
    bits = (v + _ROUND).view(namespace(v).int32)
    bits &= 0x7FFFFF
    bits -= 0x400000
    return bits


def field(data: Array, record: np.dtype[Any], name: str) -> Array:
    """Column `name` of uint8 `[blocks, type_size]`, in its own dtype: `[blocks, count]`."""
    dtype, offset = record.fields[name][:2]  # type: ignore[index]
    base = dtype.base
    column = data[:, offset : offset + dtype.itemsize]
    if base == np.uint8:
        return column
    if offset % base.itemsize or record.itemsize % base.itemsize:  # which torch takes no view of
        column = contiguous(column)
    return column.view(getattr(namespace(data), base.name))


def join(record: np.dtype[Any], **columns: Array) -> Array:
    """The inverse of `field`: columns `[blocks]` or `[blocks, count]` -> uint8 blocks.

    Values are cast to the column's type (integers wrap, as in C).
    """
    parts = []
    for name in record.names or ():
        dtype = record.fields[name][0]  # type: ignore[index]
        value = columns[name]
        xp = namespace(value)
        value = xp.reshape(value, (value.shape[0], -1))
        base = getattr(xp, dtype.base.name)
        value = value if value.dtype == base else xp.astype(value, base)
        parts.append(value if base == xp.uint8 else value.view(xp.uint8))
        assert parts[-1].shape[1] == dtype.itemsize, (name, parts[-1].shape)
    return namespace(parts[0]).concat(parts, axis=1)
