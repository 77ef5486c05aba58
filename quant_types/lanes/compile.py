"""What kernels are made of, and how one becomes object code."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir
import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from quant_types import kernels
from quant_types.kernels import LINE
from quant_types.lanes import lowering

OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "boundscheck": False,
    "_nrt": False,
    "pipeline_class": lowering.Passes,
}
_UNWRAPPED: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_APART = "quant_types_apart"
_IN_PAIRS = re.compile(r"k_|blocks_32\..*_importance$")  # kernels, see `_side_by_side`
_LIBM = {"log2", "sqrtf"}
PERMUTE = "llvm.x86.avx512.permvar.sf.512"  # of a table of 16 float32, those at 16 places


def inner(function: Callable[..., Any]) -> Any:
    """Decorator: a function of kernels, compiled into each of them."""
    return numba.njit(**{**OPTIONS, **_UNWRAPPED})(function)


def spliced(function: Callable[..., Any]) -> Any:
    """Decorator: an inner function that LLVM puts where it is called, however long it is."""
    return numba.njit(**{**OPTIONS, **_UNWRAPPED, "forceinline": True})(function)


def in_place(function: Callable[..., Any]) -> Any:
    """Decorator: a function that Numba puts where it is called, as those that return an array they
    were not given have to be where nothing counts references."""
    options: dict[str, Any] = {**OPTIONS, "inline": "always"}
    return numba.njit(**options)(function)


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


def splat(builder: Any, value: Any, width: int) -> Any:
    """A value of LLVM's in all places of a vector."""
    none = llvmlite.ir.Constant(llvmlite.ir.VectorType(value.type, width), llvmlite.ir.Undefined)
    numbers = llvmlite.ir.IntType(32)
    one = builder.insert_element(none, value, numbers(0))
    zeros = llvmlite.ir.Constant(llvmlite.ir.VectorType(numbers, width), [0] * width)
    return builder.shuffle_vector(one, one, zeros)


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


@intrinsic
def peek(typing, array, place):
    """A value of a flat array at a place that is not negative: an index of Numba's may be, and is
    looked at each time."""

    def code(context, builder, signature, arguments):
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load(builder.gep(found.data, [arguments[1]]))

    return array.dtype(array, types.int64), code


@intrinsic
def poke(typing, array, place, value):
    """As `peek`, written."""

    def code(context, builder, signature, arguments):
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        builder.store(arguments[2], builder.gep(found.data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), code


@intrinsic
def behind(typing, array, place):
    """The address of a flat array's value at a place that is not negative."""

    def code(context, builder, signature, arguments):
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = builder.gep(found.data, [arguments[1]])
        return builder.bitcast(at, context.get_value_type(types.voidptr))

    return types.voidptr(array, types.int64), code


@intrinsic
def either(typing, condition, one, other):
    """`one if condition else other`, of values that are both there: an expression's branches LLVM
    may turn into a load from one of two places, or a store that is left out, and no SIMD."""

    def code(context, builder, signature, arguments):
        return builder.select(*arguments)

    return one(types.boolean, one, one), code


@intrinsic
def to_even(typing, value):
    """The integer next to a float32, as a float32: half to even, one instruction."""

    def code(context, builder, signature, arguments):
        kind = arguments[0].type
        function = builder.module.declare_intrinsic("llvm.rint", [kind])
        return builder.call(function, arguments)

    return value(value), code


@intrinsic
def put_long(typing, array, place, value):
    """Eight bytes of a flat uint8 array from a place on, wherever it lies."""

    def code(context, builder, signature, arguments):
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = builder.gep(found.data, [arguments[1]])
        at = builder.bitcast(at, arguments[2].type.as_pointer())
        builder.store(arguments[2], at, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), code


@intrinsic
def array_at(typing, address, shape, dtype):
    """The memory at an address as an array of a shape (a tuple of int64) and a dtype."""
    array = types.Array(dtype.dtype, len(shape), "C")

    def code(context, builder, signature, arguments):
        at, sizes, _ = arguments
        kind = context.get_data_type(dtype.dtype)
        item = context.get_constant(types.intp, context.get_abi_sizeof(kind))
        lengths = cgutils.unpack_tuple(builder, sizes)
        strides, step = [], item
        for length in reversed(lengths):
            strides.insert(0, step)
            step = builder.mul(step, length)
        found = context.make_array(array)(context, builder)
        data = builder.bitcast(at, kind.as_pointer())
        arrayobj.populate_array(
            found, data=data, shape=lengths, strides=strides, itemsize=item, meminfo=None
        )
        return found._getvalue()

    return array(types.voidptr, shape, dtype), code


def _make_take(dtype):
    """`take(memory, n)`: an array of `n` values at the address, and the address of what is behind
    it, on the next cache line. A kernel has no other memory: it cannot allocate any."""
    size = np.dtype(dtype).itemsize

    @inner
    def take(memory, n):
        array = array_at(_apart(memory), (n,), dtype)
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

    @in_place
    def records(array):
        rows = array.size * array.itemsize // size
        return array_at(start_of(array), (rows, columns), dtype)

    return records


def make_as(dtype):
    """`values(array)`: a flat array's bytes as values of another dtype."""
    size = np.dtype(dtype).itemsize

    @in_place
    def values(array):
        n = array.size * array.itemsize // size
        return array_at(start_of(array), (n,), dtype)

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
        floats, words = array_at(x, (n,), np.float32), array_at(x, (n,), np.uint16)
        return call(floats, words, kind, array_at(out, (size,), np.uint8), memory, grid)

    def by_importance(x, n, kind, out, size, memory, grid, table, height, width, rows, count):
        floats, words = array_at(x, (n,), np.float32), array_at(x, (n,), np.uint16)
        importance = array_at(table, (height, width), np.float32)
        index = array_at(rows, (count,), np.int64)
        blocks = array_at(out, (size,), np.uint8)
        return call(floats, words, kind, importance, index, blocks, memory, grid)

    function, signature = (by_importance, _WEIGHTED) if weighted else (plain, _PLAIN)
    return numba.cfunc(signature, **OPTIONS)(function)


def object_code(name: str, machine: Any = None, symbol: str = kernels.SYMBOL) -> bytes:
    """A kernel's object code, which refers to nothing outside but C's library: for this processor,
    or for `machine`, and the name of its one function."""
    machine = machine or kernels.machine()
    with _side_by_side(name, machine):
        module = _module_of(name, machine)
        module.get_function(kernels.SYMBOL).name = symbol
        code: bytes = machine.emit_object(module)
    return code


@contextmanager
def _side_by_side(name: str, machine: Any) -> Iterator[None]:
    """For AVX2, loops that search a scale do two vectors at once, instruction by instruction: in
    one, sums wait for each other. LLVM's scheduler would put one vector behind the other again.
    (IQ4 loses by it, and so does AVX-512.)"""
    if not (_is_narrow(machine) and _IN_PAIRS.match(name)):
        yield
        return
    llvm.set_option("", "-force-vector-interleave=2")
    llvm.set_option("", "-enable-misched=false")
    try:
        yield
    finally:
        llvm.set_option("", "-force-vector-interleave=0")  # as LLVM finds best
        llvm.set_option("", "-enable-misched=true")


def _is_narrow(machine: Any) -> bool:
    return machine.triple.startswith("x86") and vector_width() < 16


def _module_of(name: str, machine: Any) -> Any:
    """A kernel as an LLVM module of one function, `kernels.SYMBOL`, for `machine`."""
    place, function = name.split(".")
    kernel = getattr(import_module(f"quant_types.lanes.{place}"), function)
    lowering.install()
    entry = _entry(kernel, function.endswith("_importance"))
    module = entry._library.whole()
    module.get_function(entry.native_name).name = kernels.SYMBOL
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    _optimize(module, machine)
    called = {f.name for f in module.functions if f.is_declaration} - _LIBM - {PERMUTE}
    if strange := sorted(f for f in called if not f.startswith("llvm.") or ".x86." in f):
        raise TypeError(
            f"kernel {name} calls {', '.join(strange)}, which is not there to link with"
        )
    if _is_narrow(machine):
        module = llvm.parse_assembly(_without_masked_stores(str(module)))
    return module


def vector_width() -> int:
    """Float32 in a vector of the processor that is compiled for, as Numba is told it: 16 with
    AVX-512, else 8, or two vectors of 4."""
    cpu, features = (os.environ.get(f"NUMBA_CPU_{name}", "") for name in ("NAME", "FEATURES"))
    return 16 if cpu == "x86-64-v4" or "+avx512f" in features else 8


def _without_masked_stores(code: str) -> str:
    """LLVM's code, of which its x86 backend makes no masked stores. LLVM 22 makes them of a choice
    that is stored where one of its values was loaded from; AMD's processors with AVX2 alone take 42
    micro-operations for each (https://github.com/llvm/llvm-project/issues/213195). A load that is
    called volatile is not taken for that."""
    choices = dict(re.findall(r"^  (%\S+) = (select <.*)$", code, re.MULTILINE))
    stored: dict[str, set[str]] = {}  # address -> names of values that may be there
    for value, address in re.findall(r"^  store <[^>]*> (%\S+), ptr (%\S+),", code, re.MULTILINE):
        names = re.findall(r"%[^\s,]+", choices.get(value, ""))
        stored.setdefault(address, set()).update(names)

    def load(found: re.Match[str]) -> str:
        name, kind, address = found.groups()
        volatile = "volatile " if name in stored.get(address, ()) else ""
        return f"  {name} = load {volatile}{kind}, ptr {address},"

    return re.sub(r"^  (%\S+) = load (<[^>]*>), ptr (%\S+),", load, code, flags=re.MULTILINE)


def _optimize(module: Any, machine: Any) -> None:
    """What Numba has lowered function by function, seen as a whole: no function but the kernel is
    called from outside, so that errors that cannot be raised fall away, and what raises them."""
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    _hide(module)
    builder.getModulePassManager().run(module, builder)
    body = llvmlite.ir.Module()
    apart = _declare_apart(body)
    llvmlite.ir.IRBuilder(apart.append_basic_block()).ret(apart.args[0])
    module.link_in(llvm.parse_assembly(str(body)))
    _hide(module)
    builder.getModulePassManager().run(module, builder)


def _hide(module: Any) -> None:
    """What is not called from outside may be put in place, and fall away."""
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != kernels.SYMBOL:
            value.linkage = "internal"
