"""Sums over a list of candidates of 8 weights (IQ2), side by side as vectors of LLVM's: a, of
`w * q * q`, and b, of `w * q * x`.

AVX-512 looks up what two weights add for each two levels that they may have, in tables of a vector
that are made for all sub-blocks' groups beforehand. On other processors, whose vectors such a table
does not fit into, values are multiplied.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from quant_types.grids import LEVELS_BIT, LIST
from quant_types.lanes.compile import PERMUTE, inner, splat, start_of, vector_width
from quant_types.lanes.grid_work import LANES
from quant_types.lanes.nearest import call, fused
from quant_types.lanes.rows import FLOATS, I64, INTS, Loop, Rows, ints
from quant_types.lanes.vectors import make_columns

_BYTE, _FLOAT = ir.IntType(8), ir.FloatType()


def make_sums(dim: int) -> tuple[int, Any, Any]:
    """`size, prepare, sums`.

    - size: float32 of a sub-block's terms.
    - `prepare(factors, terms)`, of Numba's: a group's weights and those times their values, float32
      [2, dim, LANES], flat, as terms, float32 [LANES, size].
    - `sums(builder, terms, near, listed, chunk)`: a and b of a chunk of `LIST` candidates, vectors
      of LLVM's. terms: address of a sub-block's. near, listed: addresses of the grid's
      (`quant_types.grids`). chunk: int64.
    """
    return _wide(dim) if vector_width() == LIST else _narrow(dim)


def _wide(dim: int) -> tuple[int, Any, Any]:
    pairs = dim // 2
    values = [[2 * (place >> shift & 3) + 1 for place in range(LIST)] for shift in (0, 2)]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factors, terms = arguments
        factors, terms = builder.bitcast(factors, _FLOAT.as_pointer()), Rows(builder, terms)
        loop = Loop(builder, 0)
        first = builder.mul(loop.number, I64(2 * pairs))
        for k, power in enumerate((2, 1)):
            for pair in range(pairs):
                found = None
                for i in range(2):
                    at = builder.add(loop.number, I64((k * dim + 2 * pair + i) * LANES))
                    factor = splat(builder, builder.load(builder.gep(factors, [at])), LIST)
                    constant = ir.Constant(FLOATS, [float(v**power) for v in values[i]])
                    found = (
                        builder.fmul(constant, factor)
                        if found is None
                        else fused(builder, constant, factor, found)
                    )
                terms.store(builder.add(first, I64(k * pairs + pair)), found)
        loop.end(LANES)
        return context.get_dummy_value()

    @intrinsic
    def make_tables(typing, factors, terms):
        return types.void(types.voidptr, types.voidptr), code

    @inner
    def prepare(factors, terms):
        make_tables(start_of(factors), start_of(terms))

    def sums(builder: Any, terms: Any, near: Any, listed: Any, chunk: Any) -> list[Any]:
        levels = Rows(builder, listed, INTS).load(chunk)
        tables, found = Rows(builder, terms), []
        for k in range(2):
            total = None
            for pair in range(pairs):
                places = builder.lshr(levels, ints(LEVELS_BIT + 4 * pair))
                one = call(builder, PERMUTE, FLOATS, tables.load(k * pairs + pair), places)
                total = one if total is None else builder.fadd(total, one)
            found.append(total)
        return found

    return 2 * pairs * LIST, prepare, sums


def _narrow(dim: int) -> tuple[int, Any, Any]:
    def sums(builder: Any, terms: Any, near: Any, listed: Any, chunk: Any) -> list[Any]:
        start = builder.mul(chunk, I64(dim * LIST))
        terms = builder.bitcast(terms, _FLOAT.as_pointer())
        a, b = None, None
        for i in range(dim):
            w, wx = (
                splat(builder, builder.load(builder.gep(terms, [I64(k * dim + i)])), LIST)
                for k in range(2)
            )
            where = builder.gep(near, [builder.add(start, I64(i * LIST))])
            where = builder.bitcast(where, ir.VectorType(_BYTE, LIST).as_pointer())
            q = builder.uitofp(builder.load(where, align=LIST), FLOATS)
            wq = builder.fmul(w, q)
            a = builder.fmul(wq, q) if a is None else fused(builder, wq, q, a)
            b = builder.fmul(wx, q) if b is None else fused(builder, wx, q, b)
        return [a, b]

    return 2 * dim, make_columns(LANES, 2 * dim), sums
