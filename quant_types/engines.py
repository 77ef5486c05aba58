"""How the two engines run over whole arrays: checks at the door, then tile after tile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from quant_types import kernels
from quant_types.arrays import Array, namespace, number, square_root, sum_rows
from quant_types.errors import (
    BadDtype,
    BadImportance,
    BadShape,
    NotFinite,
    OutOfRange,
    UnknownFormat,
)
from quant_types.format import BlockFormat
from quant_types.grids import grid
from quant_types.kernels import OVERFLOW

ENGINES = ("auto", "array", "lanes")
Wanted = Sequence[tuple[BlockFormat, np.ndarray]]  # formats, and flat uint8 for the bytes of each
_KINDS = {"float32": 0, "bfloat16": 1, "float16": 2}
_TILE_WEIGHTS = 1 << 17  # weights that the array engine holds at once: less than 8 MiB of work
_GRID_TILE_WEIGHTS = 1 << 16  # where a format has a grid, which takes more work a weight
_FINITE_TILE = 1 << 16
# dtype -> an integer of its width, and the bits that are all set in NaN and infinity
_EXPONENTS = {
    "float32": (np.uint32, np.uint32(0x7F800000)),
    "float16": (np.uint16, np.uint16(0x7C00)),
    "bfloat16": (np.uint16, np.uint16(0x7F80)),
}


def pick_engine(engine: str, is_numpy: bool) -> str:
    """ "auto" resolved: lanes where there are kernels and the data is NumPy's."""
    if engine not in ENGINES:
        raise UnknownFormat(f"expected an engine among {', '.join(ENGINES)}, found {engine!r}")
    if engine == "auto":
        return "lanes" if is_numpy and kernels.available() else "array"
    return engine


def dtype_name(x: Array) -> str:
    """ "float32" for NumPy, ml_dtypes and torch alike.

    Raises:
        BadDtype: it is none of float32, float16, bfloat16.
    """
    name = str(x.dtype).removeprefix("torch.")
    if name not in _KINDS:
        raise BadDtype(f"expected float32, float16 or bfloat16 weights, found {name}; convert them")
    return name


def check_importance(importance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 importance that broadcasts against `shape`.

    Raises:
        BadImportance: another length or dtype, values that are NaN, infinite or negative.
    """
    n = shape[-1]
    if importance.dtype != np.float32:
        raise BadImportance(f"expected float32 importance, found {importance.dtype}; convert it")
    try:
        fits = importance.shape[-1:] == (n,)
        fits = fits and np.broadcast_shapes(importance.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise BadImportance(
            f"expected importance of shape [{n}] or one that broadcasts to {list(shape)}, "
            f"found {list(importance.shape)}; give one value per input channel"
        )
    if not bool(np.all(np.isfinite(importance)) and np.all(importance >= 0)):
        raise BadImportance(
            "expected finite importance that is not negative, found NaN, infinite or negative "
            "values; collect the importance matrix again"
        )
    return np.ascontiguousarray(importance)


def check_out(out: np.ndarray, size: int) -> np.ndarray:
    """`out` as flat uint8 of `size` bytes, the same memory.

    Raises:
        BadDtype, BadShape: it is not uint8, not writable and C-contiguous, or not that size.
    """
    if out.dtype != np.uint8:
        raise BadDtype(f"expected a uint8 buffer to write to, found {out.dtype}; view it as uint8")
    if out.size != size or not out.flags.c_contiguous or not out.flags.writeable:
        raise BadShape(
            f"expected a writable C-contiguous buffer of {size} bytes, found shape "
            f"{list(out.shape)}; give one of that size"
        )
    return out.reshape(-1)


def importance_rows(
    importance: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Importance as float32 `[m, n]`, and which of its rows each row of the data uses, int64."""
    table = importance.reshape(-1, shape[-1])
    index = np.arange(len(table)).reshape(importance.shape[:-1])
    return table, np.broadcast_to(index, shape[:-1]).reshape(-1)


def row_mean_squares(x: Array, n: int) -> Array:
    """Mean square of each row, float32, added in the order of the row.

    Args:
        x: C-contiguous `[..., n]`.
    """
    xp = namespace(x)
    rows = xp.reshape(x, (-1, n))
    means = xp.empty(rows.shape[0], dtype=xp.float32, device=x.device)
    step = max(1, _TILE_WEIGHTS // n)
    for start in range(0, rows.shape[0], step):
        tile = xp.permute_dims(xp.astype(rows[start : start + step], xp.float32), (1, 0))
        means[start : start + step] = sum_rows(tile * tile) / number(n, x)
    return means


def first_bad_row(x: np.ndarray, n: int) -> int:
    """The first row of flat `x` with NaN or infinity, in rows of `n`; -1 without one."""
    integer, exponent = _EXPONENTS[dtype_name(x)]
    for start in range(0, x.size, _FINITE_TILE):
        found = x[start : start + _FINITE_TILE].view(integer) & exponent
        if found.max() == exponent:
            return int(start + int(np.argmax(found))) // n
    return -1


def kernel_name(fmt: BlockFormat, importance: bool) -> str:
    """The kernel of a format, as `kernels.load` takes it."""
    weighted = fmt.needs_importance or (importance and fmt.takes_importance)
    return fmt.lanes + ("_importance" if weighted else "")


def load_kernels(wanted: Iterable[tuple[BlockFormat, bool]], threads: int) -> None:
    """The kernels of formats, with importance or without, `threads` at a time."""
    kernels.prepare({kernel_name(*one) for one in wanted}, threads)


def quantize_lanes(x: np.ndarray, wanted: Wanted, importance: np.ndarray | None) -> bool:
    """Quantize C-contiguous `x[..., n]` into every format wanted; no GIL is held meanwhile.

    Kernels stop at weights past the range of float16, and array code takes their place. Returns
    whether there are any.
    """
    x = x if x.flags.aligned else x.copy()
    line = kernels.LINE
    memory = np.empty(kernels.MEMORY + line, np.uint8)
    memory = memory[-memory.ctypes.data % line :]
    given = (x.ctypes.data, x.size, _KINDS[dtype_name(x)])
    weighed: tuple[int, ...] = ()
    if importance is not None:
        table, rows = importance_rows(importance, x.shape)
        rows = np.ascontiguousarray(rows)
        weighed = (table.ctypes.data, *table.shape, rows.ctypes.data, rows.size)
    calls = []
    for fmt, out in wanted:
        kernel = kernels.load(kernel_name(fmt, importance is not None))
        rest = weighed if fmt.takes_importance else ()
        points = grid(fmt.grid).table.ctypes.data if fmt.grid else None
        work = (out.ctypes.data, out.size, memory.ctypes.data, points)
        calls.append((kernel, (*given, *work, *rest)))
    # nothing between the calls, where other threads wait for the GIL
    failed = [kernel(*arguments) for kernel, arguments in calls]
    if OVERFLOW in failed:
        raise OutOfRange
    stopped = [one for one, place in zip(wanted, failed, strict=True) if place >= 0]
    if not stopped:
        return False
    if (row := first_bad_row(x.reshape(-1), x.shape[-1])) >= 0:
        raise NotFinite(row)
    return quantize_array(x, stopped, importance)


def quantize_array(x: Array, wanted: Wanted, importance: Array | None) -> bool:
    """Quantize C-contiguous `x[..., n]` into every format wanted with array code. Returns whether
    weights may be past the range of float16, which is not looked at: True."""
    for fmt, out in wanted:
        _quantize_tiles(x, fmt, importance if fmt.takes_importance else None, out)
    return True


def _quantize_tiles(x: Array, fmt: BlockFormat, importance: Array | None, out: Array) -> None:
    """One tile after another."""
    xp = namespace(x)
    n = x.shape[-1]
    blocks_per_row = n // fmt.block_size
    blocks = xp.reshape(x, (-1, fmt.block_size))
    result = xp.reshape(out, (-1, fmt.type_size))
    step = max(1, (_GRID_TILE_WEIGHTS if fmt.grid else _TILE_WEIGHTS) // fmt.block_size)
    table: Any = None
    rows = np.empty(0, np.int64)
    if importance is not None:
        flat, rows = importance_rows(np.asarray(importance), tuple(x.shape))
        table = flat.reshape(len(flat), blocks_per_row, fmt.block_size)
    with np.errstate(all="ignore"):
        means = row_mean_squares(x, n) if table is not None and fmt.weighs_rows else None
        for start in range(0, blocks.shape[0], step):
            tile = blocks[start : start + step]
            tile = xp.astype(tile, xp.float32, copy=False)
            finite = xp.isfinite(tile)
            if not bool(xp.all(finite)):
                bad = int(xp.argmin(xp.astype(xp.all(finite, axis=1), xp.int8)))
                raise NotFinite((start + bad) // blocks_per_row)
            weights = None
            if table is not None:
                at = np.arange(start, start + tile.shape[0])
                weights = table[rows[at // blocks_per_row], at % blocks_per_row]
                weights = xp.asarray(weights)
                if means is not None:
                    mean = means[xp.asarray(at // blocks_per_row)][:, None]
                    weights = weights * square_root(mean + tile * tile)
            result[start : start + step] = fmt.quantize(tile, weights)


def dequantize_array(data: Array, fmt: BlockFormat, out: Array) -> None:
    """Dequantize C-contiguous uint8 `data` into flat float32 `out`, tile after tile."""
    xp = namespace(data)
    blocks = xp.reshape(data, (-1, fmt.type_size))
    result = xp.reshape(out, (-1, fmt.block_size))
    step = max(1, _TILE_WEIGHTS // fmt.block_size)
    with np.errstate(all="ignore"):
        for start in range(0, blocks.shape[0], step):
            result[start : start + step] = fmt.dequantize(blocks[start : start + step])
