"""Rows of 16 sub-blocks as vectors of LLVM's, and loops over them, for what Numba's loops make no
SIMD of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir
from llvmlite.ir import instructions

from quant_types.lanes.grid_work import LANES
from quant_types.lanes.nearest import call

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
MASK = ir.IntType(LANES)


def floats(value: float, lanes: int = LANES) -> Any:
    """The same float32 in every lane."""
    return ir.Constant(ir.VectorType(F32, lanes), [value] * lanes)


def ints(value: int, lanes: int = LANES) -> Any:
    """The same int32 in every lane."""
    return ir.Constant(ir.VectorType(I32, lanes), [value] * lanes)


def product(builder: Any, v: Any, *factors: float) -> Any:
    """A row times one number after another."""
    for factor in factors:
        v = builder.fmul(v, floats(factor, v.type.count))
    return v


def magnitude(builder: Any, v: Any) -> Any:
    """The magnitude of a row."""
    return call(builder, f"llvm.fabs.v{LANES}f32", FLOATS, v)


def lowest_bit(builder: Any, bits: Any) -> tuple[Any, Any]:
    """The lowest bit that is set, and its number; 0 and -127 where none is."""
    bit = builder.and_(bits, builder.sub(ints(0), bits))
    power = builder.bitcast(builder.sitofp(bit, FLOATS), INTS)
    return bit, builder.sub(builder.lshr(power, ints(23)), ints(127))


def _addresses(builder: Any, address: Any, places: Any, kind: Any) -> Any:
    base = builder.bitcast(address, kind.element.as_pointer())
    at = instructions.GEPInstr(builder.block, base, [places], False, "", source_etype=kind.element)
    at.type = ir.VectorType(base.type, LANES)
    builder._insert(at)
    return at


_EVERY = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES)


def gathered(builder: Any, address: Any, places: Any, kind: Any = INTS) -> Any:
    """Numbers of four bytes at places behind an address."""
    name = f"llvm.masked.gather.v{LANES}{'f32' if kind.element == F32 else 'i32'}.v{LANES}p0"
    at = _addresses(builder, address, places, kind)
    return call(builder, name, kind, at, I32(4), _EVERY, ir.Constant(kind, ir.Undefined))


def scattered(builder: Any, address: Any, places: Any, values: Any) -> None:
    """Write int32 at places behind an address."""
    name = f"llvm.masked.scatter.v{LANES}i32.v{LANES}p0"
    at = _addresses(builder, address, places, INTS)
    call(builder, name, ir.VoidType(), values, at, I32(4), _EVERY)


class Rows:
    """Memory as rows, from an address on."""

    def __init__(self, builder: Any, address: Any, kind: Any = FLOATS, stride: int = LANES):
        """`stride`: numbers of 4 bytes from a row to the next."""
        self.builder, self.kind, self.stride = builder, kind, stride
        self.numbers = builder.bitcast(address, F32.as_pointer())

    def _at(self, number: Any, behind: int) -> Any:
        builder = self.builder
        number = I64(number) if isinstance(number, int) else number
        place = builder.add(builder.mul(number, I64(self.stride)), I64(behind))
        return builder.bitcast(builder.gep(self.numbers, [place]), self.kind.as_pointer())

    def load(self, number: Any, behind: int = 0) -> Any:
        """Row `number`, `behind` numbers further on."""
        return self.builder.load(self._at(number, behind), align=4)

    def store(self, number: Any, row: Any, behind: int = 0) -> None:
        """Write it."""
        self.builder.store(row, self._at(number, behind), align=4)


class Loop:
    """A loop over int64 from `start` on, run once at least, with what it carries on."""

    def __init__(self, builder: Any, start: Any, *carried: Any):
        self.builder = builder
        before = builder.block
        self.block = builder.append_basic_block("loop")
        builder.branch(self.block)
        builder.position_at_end(self.block)
        self.number = builder.phi(I64)
        self.number.add_incoming(I64(start) if isinstance(start, int) else start, before)
        self.carried = [builder.phi(v.type) for v in carried]
        for phi, v in zip(self.carried, carried, strict=True):
            phi.add_incoming(v, before)

    def end(self, stop: Any, *carried: Any, step: int = 1) -> list[Any]:
        """Go on behind the loop, which ends at `stop`, with what it carried to there."""
        builder = self.builder
        following = builder.add(self.number, I64(step))
        stop = I64(stop) if isinstance(stop, int) else stop
        return self._end(following, builder.icmp_signed("<", following, stop), carried)

    def end_while(self, more: Any, *carried: Any) -> list[Any]:
        """Likewise, of a loop that ends where there is no more."""
        return self._end(self.builder.add(self.number, I64(1)), more, carried)

    def _end(self, following: Any, more: Any, carried: Sequence[Any]) -> list[Any]:
        builder = self.builder
        self.number.add_incoming(following, builder.block)
        for phi, v in zip(self.carried, carried, strict=True):
            phi.add_incoming(v, builder.block)
        after = builder.append_basic_block("after")
        builder.cbranch(more, self.block, after)
        builder.position_at_end(after)
        return list(carried)
