"""Blocks of quantized weights, byte for byte as ggml writes them.

>>> import numpy as np, quant_types
>>> data = quant_types.quantize(np.ones((2, 256), np.float32), "Q4_K")
>>> data.shape
(2, 144)
>>> quant_types.dequantize(data, "Q4_K").shape
(2, 256)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from quant_types import (
    floats,
    iq1_m,
    iq1_s,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
    iq4_nl,
    iq4_xs,
    mxfp4,
    nvfp4,
    q1_0,
    q2_0,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    tq1_0,
    tq2_0,
)
from quant_types.arrays import contiguous, namespace
from quant_types.engines import (
    Wanted,
    check_importance,
    check_out,
    dequantize_array,
    dtype_name,
    first_bad_row,
    load_kernels,
    pick_engine,
    quantize_array,
    quantize_lanes,
)
from quant_types.errors import (
    BadDtype,
    BadImportance,
    BadShape,
    KernelError,
    NeedsImportance,
    NotFinite,
    OutOfRange,
    QuantTypesError,
    UnknownFormat,
)
from quant_types.format import BlockFormat
from quant_types.grids import grid
from quant_types.validity import invalid_block

__all__ = [
    "FORMATS",
    "BadDtype",
    "BadImportance",
    "BadShape",
    "BlockFormat",
    "KernelError",
    "NeedsImportance",
    "NotFinite",
    "OutOfRange",
    "QuantTypesError",
    "UnknownFormat",
    "check_finite",
    "dequantize",
    "get_format",
    "invalid_block",
    "prepare",
    "quantize",
    "quantize_into",
    "table_bytes",
]

FORMATS: tuple[BlockFormat, ...] = (
    floats.F32,
    floats.F16,
    floats.BF16,
    q1_0.FORMAT,
    q2_0.FORMAT,
    q4_0.FORMAT,
    q4_1.FORMAT,
    q5_0.FORMAT,
    q5_1.FORMAT,
    q8_0.FORMAT,
    q2_k.FORMAT,
    q3_k.FORMAT,
    q4_k.FORMAT,
    q5_k.FORMAT,
    q6_k.FORMAT,
    iq1_s.FORMAT,
    iq1_m.FORMAT,
    iq2_xxs.FORMAT,
    iq2_xs.FORMAT,
    iq2_s.FORMAT,
    iq3_xxs.FORMAT,
    iq3_s.FORMAT,
    iq4_nl.FORMAT,
    iq4_xs.FORMAT,
    tq1_0.FORMAT,
    tq2_0.FORMAT,
    mxfp4.FORMAT,
    nvfp4.FORMAT,
)

_BY_NAME = {fmt.name: fmt for fmt in FORMATS}
assert len(_BY_NAME) == len({fmt.ggml_type for fmt in FORMATS}) == len(FORMATS)


def get_format(name: str | BlockFormat) -> BlockFormat:
    """The format of that name, for example "Q4_K" (upper case, as in GGUF).

    Raises:
        UnknownFormat: there is none; the message lists names that are near.
    """
    if isinstance(name, BlockFormat):
        return name
    fmt = _BY_NAME.get(name)
    if fmt is None:
        near = difflib.get_close_matches(str(name).upper(), _BY_NAME, cutoff=0.5) or _BY_NAME
        raise UnknownFormat(f"expected a format such as {', '.join(near)}, found {name!r}")
    return fmt


def quantize(
    x: Any,
    fmt: str | BlockFormat,
    importance: Any = None,
    engine: str = "auto",
    out: Any = None,
) -> Any:
    """Quantize rows of weights to the bytes that ggml's `ggml_quantize_chunk` writes.

    One call is one thread, and the lanes engine runs it without the GIL: threads belong to the
    caller. Beyond input and output a call takes a few MiB at most (an input that is not
    C-contiguous is copied).

    Args:
        x: float32, float16 or bfloat16 `[..., n]`; a torch tensor goes through the array engine.
        fmt: a format or its name.
        importance: float32, the importance of each input channel (mean squared activation):
            `[n]`, or any shape that broadcasts to `x.shape`. Formats for which ggml ignores it
            (`takes_importance` is False) check it and ignore it too.
        engine: "array" (NumPy or torch), "lanes" (Numba), or "auto": lanes where installed.
        out: uint8, C-contiguous, of the result's size: written into instead of a new array.

    Returns:
        uint8 `[..., n // block_size * type_size]`; `out` itself where it was given.

    Raises:
        UnknownFormat: no such format or engine.
        BadDtype: `x`, or `out`, is of another dtype.
        BadShape: `n` does not divide into blocks, or `out` is of another size.
        BadImportance: importance of another shape, or with NaN, infinite or negative values.
        NeedsImportance: the format cannot be made without importance, and there is none.
        NotFinite: NaN or infinity in `x`; `.row` is the first row with one.
        OutOfRange: errors of IQ1, IQ2 or IQ3 overflow float32 (weights past about 1e12).
        KernelError: the lanes engine could not be compiled on this machine.
    """
    fmt = get_format(fmt)
    x, chosen = _weights(x, engine)
    xp = namespace(x)
    shape = (*x.shape[:-1], fmt.row_bytes(x.shape[-1]))
    result = xp.empty(shape, dtype=xp.uint8, device=x.device) if out is None else out
    flat = xp.reshape(result, (-1,)) if out is None else check_out(out, prod(shape))
    _run(x, chosen, [(fmt, flat)], importance)
    return result


def quantize_into(
    x: Any, wanted: Iterable[tuple[str | BlockFormat, Any]], importance: Any = None
) -> bool:
    """Quantize rows of weights into several formats: what `quantize` does for each, in less time
    between them.

    Blocks of weights past the range of float16 (65,520 and more) are made as ggml makes them, with
    scales that may be infinite; `invalid_block` finds those.

    Args:
        x: as for `quantize`.
        wanted: formats, each with its `out` as for `quantize`.
        importance: as for `quantize`.

    Returns:
        False where no weight is past the range of float16, so that every block is finite.

    Raises:
        What `quantize` raises, before a byte is written unless it is NotFinite or OutOfRange.
    """
    x, chosen = _weights(x, "auto")
    rows, n = prod(x.shape[:-1]), x.shape[-1]
    found = [(get_format(fmt), out) for fmt, out in wanted]
    found = [(fmt, check_out(out, rows * fmt.row_bytes(n))) for fmt, out in found]
    return _run(x, chosen, found, importance)


def _weights(x: Any, engine: str) -> tuple[Any, str]:
    """C-contiguous weights, and the engine that quantizes them."""
    is_numpy = not hasattr(x, "device") or isinstance(x, np.ndarray)
    if is_numpy:
        x = np.asarray(x)
    chosen = pick_engine(engine, is_numpy)
    dtype_name(x)
    if x.ndim == 0:
        raise BadShape("expected rows of weights `[..., n]`, found a scalar")
    return contiguous(x), chosen


def _run(x: Any, engine: str, wanted: Wanted, importance: Any) -> bool:
    for fmt, _ in wanted:
        if fmt.needs_importance and importance is None:
            raise NeedsImportance(fmt.name)
    if importance is not None:
        importance = check_importance(np.asarray(importance), tuple(x.shape))
    if not prod(x.shape):
        return False
    run = quantize_lanes if engine == "lanes" else quantize_array
    return run(x, wanted, importance)


def prepare(wanted: Iterable[tuple[str | BlockFormat, bool]], threads: int = 1) -> None:
    """Have the lanes engine ready: what this machine has not compiled yet takes seconds a format,
    here `threads` at a time. Without a call, `quantize` does it when a format is first wanted.

    Args:
        wanted: formats, each with whether there is importance.

    Raises:
        UnknownFormat: no such format.
        KernelError: one could not be compiled on this machine.
    """
    found = [(get_format(fmt), importance) for fmt, importance in wanted]
    if pick_engine("auto", is_numpy=True) == "lanes":
        load_kernels(found, threads)


def table_bytes(formats: Iterable[str | BlockFormat]) -> int:
    """Bytes of the tables that formats' searches look up: made once a process, when a format is
    first wanted, and shared by threads and by formats of the same grid.

    Raises:
        UnknownFormat: no such format.
    """
    names = {get_format(fmt).grid for fmt in formats}
    return sum(grid(name).table.nbytes for name in names if name)


def check_finite(x: np.ndarray[Any, Any]) -> None:
    """Look at every weight of float32, float16 or bfloat16 `[..., n]`, at the speed of memory.

    Raises:
        BadDtype: `x` is of another dtype.
        NotFinite: NaN or infinity in `x`; `.row` is the first row with one.
    """
    dtype_name(x)
    if x.size and (row := first_bad_row(contiguous(x).reshape(-1), x.shape[-1])) >= 0:
        raise NotFinite(row)


def dequantize(data: Any, fmt: str | BlockFormat, engine: str = "auto") -> Any:
    """The float32 weights that blocks stand for: ggml's `to_float`, bit for bit.

    Args:
        data: uint8 `[..., bytes]`, a NumPy array or torch tensor.
        fmt: a format or its name.
        engine: as for `quantize`; all of them run the array code, which is bound by memory.

    Returns:
        float32 `[..., n]`.

    Raises:
        UnknownFormat: no such format or engine.
        BadDtype: `data` is not uint8.
        BadShape: `data`'s last axis is not a whole number of blocks.
    """
    fmt = get_format(fmt)
    is_numpy = not hasattr(data, "device") or isinstance(data, np.ndarray)
    if is_numpy:
        data = np.asarray(data)
    pick_engine(engine, is_numpy)
    xp = namespace(data)
    if data.dtype != xp.uint8:
        raise BadDtype(f"expected uint8 blocks, found {data.dtype}; view the bytes as uint8")
    if data.ndim == 0 or data.shape[-1] % fmt.type_size:
        raise BadShape(
            f"{fmt.name} expects rows of a multiple of {fmt.type_size} bytes, "
            f"found shape {list(data.shape)}; give whole blocks"
        )
    data = contiguous(data)
    n = data.shape[-1] // fmt.type_size * fmt.block_size
    result = xp.empty((*data.shape[:-1], n), dtype=xp.float32, device=data.device)
    if n:
        dequantize_array(data, fmt, result)
    return result
