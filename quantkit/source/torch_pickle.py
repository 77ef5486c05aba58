"""The pickle of a state dict, opcode by opcode: tables, tuples, names and tensors, nothing else.

Python's `pickle` builds whatever it is told to; here nothing is called but what is written below,
and count, size and depth are bounded. Opcodes: `pickletools`, which explains each.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from quantkit.errors import UnsupportedSource

_STORAGES = {"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
             "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "CharStorage": ("I8", 1),
             "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1), "DoubleStorage": ("F64", 8),
             "ShortStorage": ("I16", 2)}  # fmt: skip
MAX_OPCODES = 1 << 22  # a tensor takes some forty
MAX_DEPTH = 20
_MAX_NAME = 1 << 12  # characters of a name that a pickle gives


class Malformed(Exception):
    """Opcodes that make no state dict."""


class Code(Exception):
    """The pickle names something that is no part of a state dict."""


class Storage(NamedTuple):
    """A run of bytes of the file."""

    key: str
    dtype: str
    size: int  # bytes of a weight


class Tensor(NamedTuple):
    """A view of a storage. `offset` and `stride` count weights."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Global(NamedTuple):
    module: str
    name: str


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how deep it is."""

    depth = 1


_MARK = object()
_VALUES = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING", "BINBYTES", "SHORT_BINBYTES",
})  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"BINGET", "LONG_BINGET"})


def read_pickle(data: bytes) -> Any:
    """The value of a pickle: dicts, lists, tuples, numbers, texts, `Storage` and `Tensor`.

    Raises Code, Malformed, UnsupportedSource, and what a wrong kind of value makes Python raise
    (TypeError, ValueError, IndexError, KeyError).
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if count > MAX_OPCODES:
            raise Malformed(f"more than {MAX_OPCODES} opcodes")
        if name in _VALUES:
            stack.append(argument)
        elif name in _PUTS:
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(_tuple(_taken(stack, _TUPLES[name])))
        elif name == "TUPLE":
            stack.append(_tuple(_marked(stack)))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("SETITEM", "SETITEMS"):
            items = _taken(stack, 2) if name == "SETITEM" else _marked(stack)
            for key, value in zip(items[::2], items[1::2], strict=True):
                if not isinstance(key, str | int) or not isinstance(stack[-1], dict):
                    raise Malformed("an entry that is not of a table of names")
                stack[-1][key] = value
        elif name in ("APPEND", "APPENDS"):
            items = _taken(stack, 1) if name == "APPEND" else _marked(stack)
            if not isinstance(stack[-1], list):
                raise Malformed("an item that is of no list")
            stack[-1].extend(items)
        elif name == "GLOBAL":
            stack.append(_global(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_global(*_taken(stack, 2)))
        elif name == "REDUCE":
            function, arguments = _taken(stack, 2)
            stack.append(_call(function, arguments))
        elif name == "BUILD":  # attributes of the table, such as _metadata
            _taken(stack, 1)
        elif name == "BINPERSID":
            stack.append(_storage(*_taken(stack, 1)))
        elif name == "STOP":
            (value,) = stack
            return value
        elif name not in ("PROTO", "FRAME"):
            raise Malformed(f"the opcode {name}")
    raise Malformed("no end")


def _taken(stack: list[Any], count: int) -> list[Any]:
    """The last `count` values, removed from the stack."""
    if count > len(stack):
        raise Malformed("fewer values than are used")
    at = len(stack) - count
    found = stack[at:]
    del stack[at:]
    if any(value is _MARK for value in found):
        raise Malformed("a mark in place of a value")
    return found


def _marked(stack: list[Any]) -> list[Any]:
    """The values since the last mark, removed from the stack with it."""
    found = []
    while (value := stack.pop()) is not _MARK:
        found.append(value)
    return found[::-1]


def _tuple(items: list[Any]) -> _Tuple:
    made = _Tuple(items)
    made.depth = 1 + max((i.depth for i in items if isinstance(i, _Tuple)), default=0)
    if made.depth > MAX_DEPTH:
        raise Malformed(f"tuples more than {MAX_DEPTH} deep")
    return made


def _global(module: Any, name: Any) -> _Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise Malformed("a name that is no text")
    if len(module) + len(name) > _MAX_NAME:
        raise Malformed("a name of thousands of characters")
    if (module, name) not in _CALLS and not (module == "torch" and name in _STORAGES):
        if module == "torch" and name.endswith("Storage"):
            raise UnsupportedSource(f"weights in a {name} are not read")
        raise Code(f"{module}.{name}")
    return _Global(module, name)


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise Malformed("a call of what is no function")
    if function not in _CALLS:
        raise Code(f"a call of {function.module}.{function.name}")
    return _CALLS[function](*arguments)


def _storage(pid: Any) -> Storage:
    kind, storage, key, *_ = pid
    if kind != "storage" or not isinstance(storage, _Global) or storage.name not in _STORAGES:
        raise Code(f"{str(kind)[:80]} that is no storage")
    if not isinstance(key, str | int):
        raise Malformed("a storage without a name")
    return Storage(str(key), *_STORAGES[storage.name])


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage) or not all(
        type(n) is int and abs(n) < 1 << 63 for n in (offset, *shape, *stride)
    ):
        raise Malformed("a tensor whose storage, shape or stride is none")
    return Tensor(storage, offset, tuple(shape), tuple(stride))


def _ordered(items: Any = ()) -> dict[Any, Any]:
    if items:
        raise Malformed("a table that is made of a list")
    return {}


def _first(value: Any, *rest: Any) -> Any:
    return value


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
}
