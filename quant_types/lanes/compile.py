"""What kernels are made of, and how one becomes object code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir
import numba
import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from quant_types import kernels
from quant_types.kernels import LINE

OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
_APART = "quant_types_apart"
_LIBM = {"log2", "sqrtf"}


def inner(function: Callable[..., Any]) -> Any:
    """Decorator: a function of kernels, compiled into each of them."""
    return numba.njit(**OPTIONS)(function)


def _declare_apart(module: Any) -> Any:
    """The function that hands on an address as one that no other leads to, as that of an array just
    allocated. Loops over several arrays become SIMD for that. It does nothing, and is in a
    module in name only until all is optimized."""
    if _APART in module.globals:
        return module.globals[_APART]
    address = llvmlite.ir.IntType(8).as_pointer()
    function = llvmlite.ir.Function(module, llvmlite.ir.FunctionType(address, [address]), _APART)
    function.return_value.add_attribute("noalias")
    return function


@intrinsic
def _apart(typing, address):
    def code(context, builder, signature, arguments):
        return builder.call(_declare_apart(builder.module), arguments)

    return types.voidptr(types.voidptr), code


@intrinsic
def _behind(typing, address, offset):
    """The address `offset` bytes behind another."""

    def code(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return types.voidptr(types.voidptr, types.int64), code


@intrinsic
def start_of(typing, array):
    """The address of an array's first value."""

    def code(context, builder, signature, arguments):
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.bitcast(found.data, context.get_value_type(types.voidptr))

    return types.voidptr(array), code


def _make_take(dtype):
    """`take(memory, n)`: an array of `n` values at the address, and the address of what is behind
    it, on the next cache line. A kernel has no other memory: it cannot allocate any."""
    size = np.dtype(dtype).itemsize

    @inner
    def take(memory, n):
        array = carray(_apart(memory), (n,), dtype)
        return array, _behind(memory, (n * size + LINE - 1) // LINE * LINE)

    return take


take_floats, take_ints = _make_take(np.float32), _make_take(np.int32)
take_halfs, take_bytes = _make_take(np.uint16), _make_take(np.uint8)


@inner
def take_zeros(memory, n):
    """As `take_floats`, filled with zeros."""
    array, rest = take_floats(memory, n)
    for i in range(n):
        array[i] = np.float32(0.0)
    return array, rest


def make_records(dtype, columns):
    """`records(array)`: a flat array's bytes as `[n, columns]` of another dtype, a whole number."""
    size = np.dtype(dtype).itemsize * columns

    @inner
    def records(array):
        rows = array.size * array.itemsize // size
        return carray(start_of(array), (rows, columns), dtype)

    return records


def make_as(dtype):
    """`values(array)`: a flat array's bytes as values of another dtype."""
    size = np.dtype(dtype).itemsize

    @inner
    def values(array):
        n = array.size * array.itemsize // size
        return carray(start_of(array), (n,), dtype)

    return values


as_longs, as_halfs, as_floats = make_as(np.uint64), make_as(np.uint16), make_as(np.float32)

_P, _I = types.voidptr, types.int64
_PLAIN = _I(_P, _I, _I, _P, _I, _P, _P)
_WEIGHTED = _I(_P, _I, _I, _P, _I, _P, _P, _P, _I, _I, _P, _I)


def _entry(kernel: Any, weighted: bool) -> Any:
    """The C function of a kernel, as `kernels.PLAIN` or `kernels.WEIGHTED` declare it."""
    with_grid = "grid" in kernel.py_func.__code__.co_varnames[: kernel.py_func.__code__.co_argcount]

    @inner
    def call(*arguments):
        return kernel(*arguments) if with_grid else kernel(*arguments[:-1])

    def plain(x, n, kind, out, size, memory, grid):
        floats, words = carray(x, (n,), np.float32), carray(x, (n,), np.uint16)
        return call(floats, words, kind, carray(out, (size,), np.uint8), memory, grid)

    def by_importance(x, n, kind, out, size, memory, grid, table, height, width, rows, count):
        floats, words = carray(x, (n,), np.float32), carray(x, (n,), np.uint16)
        importance = carray(table, (height, width), np.float32)
        index = carray(rows, (count,), np.int64)
        blocks = carray(out, (size,), np.uint8)
        return call(floats, words, kind, importance, index, blocks, memory, grid)

    function, signature = (by_importance, _WEIGHTED) if weighted else (plain, _PLAIN)
    return numba.cfunc(signature, **OPTIONS)(function)


def object_code(name: str) -> bytes:
    """A kernel's object code, which refers to nothing outside but C's library."""
    place, function = name.split(".")
    kernel = getattr(import_module(f"quant_types.lanes.{place}"), function)
    llvm.add_symbol(_APART, ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value)
    entry = _entry(kernel, function.endswith("_importance"))
    module = llvm.parse_assembly(entry.inspect_llvm())
    module.get_function(entry.native_name).name = kernels.SYMBOL
    machine = kernels.machine()
    _optimize(module, machine)
    called = {f.name for f in module.functions if f.is_declaration}
    if strange := sorted(f for f in called - _LIBM if not f.startswith("llvm.")):
        raise TypeError(
            f"kernel {name} calls {', '.join(strange)}, which is not there to link with"
        )
    code: bytes = machine.emit_object(module)
    return code


def _optimize(module: Any, machine: Any) -> None:
    """What Numba has optimized function by function, seen as a whole: no function but the kernel is
    called from outside, so that errors that cannot be raised fall away, and what raises them."""
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    _hide_functions(module)
    builder.getModulePassManager().run(module, builder)
    body = llvmlite.ir.Module()
    apart = _declare_apart(body)
    llvmlite.ir.IRBuilder(apart.append_basic_block()).ret(apart.args[0])
    module.link_in(llvm.parse_assembly(str(body)))
    _hide_functions(module)
    builder.getModulePassManager().run(module, builder)


def _hide_functions(module: Any) -> None:
    for function in module.functions:
        if not function.is_declaration and function.name != kernels.SYMBOL:
            function.linkage = "internal"
