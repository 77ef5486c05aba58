"""Grids of the formats from IQ1 to IQ3: the points that a group of 4 or 8 levels is moved to.

The points are ggml's and come from the `gguf` package. A group that is off the grid is compared
with the points near it: those at the two least distances from it, or at one or three as the grid
says, nearest first and equally near ones in the grid's order (ggml `iq2xs_init_impl`,
`iq3xs_init_impl`).
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from quant_types.kernels import LINE

LIST = 16  # candidates in a chunk of a list; the last of a list is repeated to fill its last chunk
SIZE_BITS = 9  # of a list's first chunk and its size in one number, those of the size
SIZE = (1 << SIZE_BITS) - 1  # what masks the size
LEVELS_BIT = 15  # of `Grid.packed`, where a point's levels begin
OFF = 1 << 14  # set in a packed point that was not rounded to
_ROWS = 256  # codes whose distances are in memory at once


class Grid(NamedTuple):
    """A grid; all arrays are views of `table`, one behind another in this order, on cache lines.

    A code is a group's levels as digits, the first the lowest, in base `base`. Its short list is
    without those that another candidate lies between, in every coordinate: where a weight's error
    does not fall from the code's level outwards, the other's error is not greater whatever the
    weights, and it comes first in the list.
    """

    base: int  # levels of a weight
    dim: int  # weights of a group
    place: np.ndarray  # int32 [codes]: the point, or -1 - the first chunk of the list
    sizes: np.ndarray  # int32 [codes]: candidates in the list, 0 on the grid
    cells: np.ndarray  # int32 [2, codes and more]: the point's `packed`, or -1 - (chunk and, in the
    # low `SIZE_BITS`, size) of the short list; for a power of two added to a code, the whole list
    packed: np.ndarray  # int32 [points]: the point, and from bit 15 on its levels, 3 or 2 bits each
    odd: np.ndarray  # uint8 [points, dim]: a point as 2 * level + 1
    points: np.ndarray  # uint16 [all chunks, LIST]: candidates; the short lists behind the others
    near: np.ndarray  # uint8 [all chunks, dim, LIST]: candidates as 2 * level + 1
    listed: np.ndarray  # int32 [all chunks, LIST]: candidates as `packed`, but for IQ1 with `OFF`;
    # IQ3's with chunks behind, since lists side by side are read as far as the longest of them
    table: np.ndarray  # uint8


class _Kind(NamedTuple):
    base: int
    dim: int
    distances: int  # that a list goes up to


_KINDS = {
    "IQ1_S": _Kind(3, 8, 3),
    "IQ2_XXS": _Kind(3, 8, 2),
    "IQ2_XS": _Kind(3, 8, 2),
    "IQ2_S": _Kind(3, 8, 1),
    "IQ3_XXS": _Kind(8, 4, 2),
    "IQ3_S": _Kind(8, 4, 3),
}
_guard = threading.Lock()
_made: dict[str, Grid] = {}


def grid(name: str) -> Grid:
    """The grid of a format, made once a process: read-only, for all threads."""
    with _guard:
        if name not in _made:
            _made[name] = _make(name)
        return _made[name]


def level_bits(base: int) -> int:
    """Bits of a level in `Grid.packed`."""
    return 3 if base == 8 else 2


def _make(name: str) -> Grid:
    base, dim, distances = _KINDS[name]
    levels = _levels(name, base, dim)
    digits = base ** np.arange(dim)
    codes = base**dim
    place = np.zeros(codes, np.int32)
    sizes = np.zeros(codes, np.int32)
    on_grid = levels @ digits
    place[on_grid] = np.arange(len(levels))
    off_grid = np.setdiff1d(np.arange(codes), on_grid)
    lists = []
    for start in range(0, len(off_grid), _ROWS):
        part = off_grid[start : start + _ROWS]
        lists += _near(part[:, None] // digits % base, levels, distances)
    sizes[off_grid], starts = _chunks(lists)
    place[off_grid] = -1 - starts
    shifts = LEVELS_BIT + level_bits(base) * np.arange(dim)
    packed = ((levels << shifts).sum(1) + np.arange(len(levels))).astype(np.int32)
    cells = np.zeros((2, 1 << (codes - 1).bit_length()), np.int32)
    cells[:, :codes] = packed[np.maximum(place, 0)]
    cells[1, off_grid] = -1 - (starts << SIZE_BITS | sizes[off_grid])
    ways = _ways(base, dim)
    shorter = [
        _short(ways[code // digits % base, np.arange(dim), levels[one]], one)
        for code, one in zip(off_grid, lists, strict=True)
    ]
    short_sizes, more = _chunks(shorter)
    more += starts[-1] - (-sizes[off_grid[-1]] // LIST)
    cells[0, off_grid] = -1 - (more << SIZE_BITS | short_sizes)
    lists += shorter
    points = np.concatenate([np.pad(one, (0, -len(one) % LIST), mode="edge") for one in lists])
    points = points.astype(np.uint16).reshape(-1, LIST)
    odd = (2 * levels + 1).astype(np.uint8)
    near = np.ascontiguousarray(odd[points].transpose(0, 2, 1))
    listed = packed[points] | (0 if name == "IQ1_S" else OFF)
    if dim == 4:
        listed = np.pad(listed, ((0, sizes.max() // LIST), (0, 0)))
    arrays = (place, sizes, cells, packed, odd, points, near, listed)
    spans = [-(-a.nbytes // LINE) * LINE for a in arrays]
    memory = np.zeros(sum(spans) + LINE, np.uint8)
    table = memory[-memory.ctypes.data % LINE :][: sum(spans)]
    views, at = [], 0
    for a, span in zip(arrays, spans, strict=True):
        view = table[at : at + a.nbytes].view(a.dtype).reshape(a.shape)
        view[:] = a
        view.flags.writeable = False
        views.append(view)
        at += span
    table.flags.writeable = False
    place, sizes, cells, packed, odd, points, near, listed = views
    return Grid(base, dim, place, sizes, cells, packed, odd, points, near, listed, table)


def _chunks(lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of lists, and the chunks with which they begin, one behind another."""
    sizes = np.array([len(one) for one in lists])
    chunks = -(-sizes // LIST)
    return sizes, np.cumsum(chunks) - chunks


def _ways(base: int, dim: int) -> np.ndarray:
    """The steps from a level to another, as bits: uint64 `[level, coordinate, level]`. A point lies
    between a code and another where its steps are some of the other's."""
    apart = np.arange(base) - np.arange(base)[:, None]
    steps = (1 << np.abs(apart)) - 1 << np.where(apart < 0, base - 1, 0)
    bits = 2 * (base - 1) * np.arange(dim)[:, None]
    ways: np.ndarray = steps[:, None].astype(np.uint64) << bits.astype(np.uint64)
    return ways


def _short(ways: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Of a list's points, those that no other lies between; `ways`: uint64 `[points, dim]`."""
    steps = np.bitwise_or.reduce(ways, axis=1)
    between = (steps[:, None] & ~steps) == 0
    kept: np.ndarray = points[between.sum(0) == 1]  # itself
    return kept


def _levels(name: str, base: int, dim: int) -> np.ndarray:
    """The points of a grid, int64 `[points, dim]`, from 0 to base - 1."""
    from gguf import quants

    kind = getattr(quants, name)
    kind.init_grid()
    values = np.asarray(kind.grid).reshape(-1, dim)
    levels = np.searchsorted(np.asarray(kind.grid_map, values.dtype), values)
    assert levels.max() == base - 1
    return levels


def _near(codes: np.ndarray, levels: np.ndarray, distances: int) -> list[np.ndarray]:
    """The candidates of each of some codes, `[codes, dim]`."""
    apart = np.square(codes).sum(1)[:, None] - 2 * codes @ levels.T + np.square(levels).sum(1)
    farthest = apart.min(axis=1, keepdims=True)
    for _ in range(distances - 1):
        beyond = np.where(apart > farthest, apart, np.iinfo(apart.dtype).max)
        farthest = beyond.min(axis=1, keepdims=True)
    code, point = np.nonzero(apart <= farthest)
    order = np.lexsort((point, apart[code, point], code))
    starts = np.searchsorted(code, np.arange(1, len(codes)))
    return np.split(point[order], starts)
