"""The GGUF container: read a header with every length checked, build one, know every offset.

Layout (ggml `docs/gguf.md`): magic, version, two counts, key-values, tensor infos, padding to the
alignment, tensor data. Key-values are kept as the bytes they are stored in, so that what is copied
from one file to another is copied exactly; `KeyValue.value` decodes them when somebody asks.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from typing import Any

from quantkit.errors import CorruptFile, SourceError, SourceNotFound, UnsupportedSource
from quantkit.storage.inputs import File, open_input
from quantkit.storage.substitutes import no_gguf, of_checkpoint, piece

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32  # of what is written; a file that says otherwise is read
LEAST_ALIGNMENT = 8
MAX_HEADER = 1 << 30  # bytes; the largest vocabularies need some 20 MB
MAX_ITEMS = 1 << 22  # of a list; the largest vocabularies have some million merges
_KEY_BYTES, _TENSOR_BYTES = 13, 32  # the least that one takes in a header

# GGUF value type -> struct code; 8 is a string, 9 an array
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_INFOS = {n: struct.Struct(f"<{n}QIQ") for n in range(1, 5)}  # dimensions, type, offset
_LENGTH = struct.Struct("<Q").pack
_STRING, _ARRAY = 8, 9
_UINT32 = 4
# Python type -> GGUF value type of an array's elements
_ELEMENTS: dict[type, int] = {str: 8, bytes: 8, bytearray: 8, float: 6, bool: 7, int: 5}
TYPE_NAMES = ("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL", "STRING",
               "ARRAY", "UINT64", "INT64", "FLOAT64")  # fmt: skip


@dataclass(frozen=True)
class KeyValue:
    """One metadata entry: its key and its encoded value (type tag included)."""

    key: str
    raw: bytes

    @property
    def type(self) -> str:
        """GGUF type name: UINT32, STRING, ARRAY ..."""
        return TYPE_NAMES[struct.unpack_from("<I", self.raw)[0]]

    @property
    def element_type(self) -> str:
        """GGUF type name of an array's elements."""
        return TYPE_NAMES[struct.unpack_from("<I", self.raw, 4)[0]]

    @property
    def length(self) -> int:
        """How many elements an array has."""
        return int(struct.unpack_from("<Q", self.raw, 8)[0])

    @property
    def value(self) -> Any:
        """The decoded value: int, float, bool, str, or a list of those."""
        return _Reader(self.raw, "metadata").value()


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header. `shape` in NumPy order (GGUF stores it reversed)."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int  # bytes from the start of the tensor data


@dataclass(frozen=True)
class Header:
    """A GGUF file without its weights."""

    kv: tuple[KeyValue, ...]
    tensors: tuple[TensorInfo, ...]
    data_offset: int  # bytes from the start of the file
    alignment: int = ALIGNMENT

    def get(self, key: str, default: Any = None) -> Any:
        """The decoded value of `key`, or `default`."""
        return next((item.value for item in self.kv if item.key == key), default)


def align(n: int, alignment: int = ALIGNMENT) -> int:
    """`n` rounded up to a multiple of `alignment` bytes."""
    return -(-n // alignment) * alignment


def scalar(key: str, kind: int, value: float) -> KeyValue:
    """A number or BOOL, `kind` being its GGUF value type. Raises struct.error, OverflowError."""
    return KeyValue(key, struct.pack(f"<I{_SCALARS[kind]}", kind, value))


def uint32(key: str, value: int) -> KeyValue:
    """A UINT32 entry."""
    return scalar(key, _UINT32, value)


def string(key: str, value: str | bytes) -> KeyValue:
    """A STRING entry."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return KeyValue(key, struct.pack("<IQ", _STRING, len(data)) + data)


def array(key: str, values: Sequence[Any], element: int | None = None) -> KeyValue:
    """An ARRAY entry. `element` is its GGUF value type; without it the values' own decides, as in
    gguf-py. Raises ValueError, TypeError, struct.error (values that cannot be stored so)."""
    if element is None:
        kinds = set(map(type, values))
        if len(kinds) != 1 or (kind := kinds.pop()) not in _ELEMENTS:
            raise ValueError(f"{key}: an array of values of one type is expected")
        element = _ELEMENTS[kind]
    if element == _STRING:
        texts = [v.encode() if isinstance(v, str) else v for v in values]
        data = b"".join(map(_counted, texts))
    else:
        data = struct.pack(f"<{len(values)}{_SCALARS[element]}", *values)
    return KeyValue(key, struct.pack("<IIQ", _ARRAY, element, len(values)) + data)


def replaced(kv: Iterable[KeyValue], *new: KeyValue) -> tuple[KeyValue, ...]:
    """`kv` without the keys of `new`, then `new`: the order that ggml's `gguf_set_val_*` leaves."""
    keys = {item.key for item in new}
    return (*(item for item in kv if item.key not in keys), *new)


def header_bytes(kv: Sequence[KeyValue], tensors: Sequence[TensorInfo]) -> bytes:
    """The file's bytes up to the tensor data, padding included: a vocabulary alone has none."""
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(kv)))
    for item in kv:
        out += _packed(item.key) + item.raw
    for t in tensors:
        dims = t.shape[::-1]
        out += _packed(t.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", t.ggml_type, t.offset)
    return bytes(out.ljust(_end(len(out), kv, len(tensors)), b"\0"))


def header_size(kv: Sequence[KeyValue], tensors: Iterable[tuple[str, Sequence[int]]]) -> int:
    """How many bytes `header_bytes` has, by the names and shapes of the tensors."""
    size = len(MAGIC) + 20
    size += sum(len(_packed(item.key)) + len(item.raw) for item in kv)
    infos = [len(_packed(name)) + 16 + 8 * len(shape) for name, shape in tensors]
    return _end(size + sum(infos), kv, len(infos))


def _end(size: int, kv: Sequence[KeyValue], tensors: int) -> int:
    """Where tensor data begins after a header of `size` bytes, as llama.cpp's converter has it."""
    whole = tensors or any(item.key == "split.count" for item in kv)
    return align(size) if whole else size


def read_header(path: File) -> Header:
    """Read and check the header of a GGUF file.

    Raises SourceNotFound, CorruptFile (anything that does not hold together), UnsupportedSource
    (another version or byte order), and for a file on the Hub what reading it raises.
    """
    try:
        with closing(open_input(path)) as f:
            file_size, size, data = f.size, 1 << 20, b""
            while True:  # the header's size is nowhere written: read until it parses
                data += f.pread(size - len(data), len(data))
                if data[: len(MAGIC)] != MAGIC:
                    raise _no_gguf(data, path)
                try:
                    header = _Reader(data, str(path)).header(file_size)
                    break
                except CorruptFile:
                    if what := piece(path.name):
                        raise UnsupportedSource(f"{path}: {what}") from None
                    raise
                except _Short as e:
                    if len(data) >= min(file_size, MAX_HEADER) or e.end > file_size:
                        if what := piece(path.name):
                            raise UnsupportedSource(f"{path}: {what}") from None
                        raise CorruptFile(
                            f"{path}: the header does not end within {len(data)} bytes; "
                            "the file is truncated or damaged"
                        ) from None
                    size *= 4
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: no such file") from None
    try:
        _check_offsets(header, file_size, path)
    except CorruptFile:
        if what := piece(path.name):
            raise UnsupportedSource(f"{path}: {what}") from None
        raise
    return header


def _no_gguf(data: bytes, path: File) -> SourceError:
    if what := no_gguf(data, path.name):
        return UnsupportedSource(f"{path}: {what}")
    hint = "; of a checkpoint, name the directory" if of_checkpoint(path.name) else ""
    return CorruptFile(f"{path}: not a GGUF file (it does not start with 'GGUF'){hint}")


def _check_offsets(header: Header, file_size: int, path: File) -> None:
    from quantkit.gguf.types import type_by_id

    seen: set[str] = set()
    for t in header.tensors:
        ggml = type_by_id(t.ggml_type)
        if ggml is None:
            raise UnsupportedSource(f"{path}: tensor {t.name} has unknown ggml type {t.ggml_type}")
        if t.name in seen:
            raise CorruptFile(f"{path}: tensor {t.name} is listed twice")
        seen.add(t.name)
        if not t.shape or t.shape[-1] % ggml.block_size or prod(t.shape) <= 0:
            raise CorruptFile(f"{path}: tensor {t.name}: shape {t.shape} does not fit {ggml.name}")
        end = header.data_offset + t.offset + prod(t.shape) // ggml.block_size * ggml.type_size
        if t.offset % header.alignment or end > file_size:
            raise CorruptFile(
                f"{path}: tensor {t.name} ends at byte {end}, the file at {file_size}; "
                "it is truncated"
            )


def _packed(text: str) -> bytes:
    return _counted(text.encode("utf-8", "surrogateescape"))


def _counted(data: bytes) -> bytes:
    return _LENGTH(len(data)) + data


class _Short(Exception):
    """The bytes at hand end before the structure does, which is at `end` at the earliest."""

    def __init__(self, end: int) -> None:
        self.end = end


class _Reader:
    """A cursor over header bytes that never reads past their end."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.at, self.where = data, 0, where

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise _Short(self.at + n)
        self.at += n
        return self.data[self.at - n : self.at]

    def unpack(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        data = self.take(self.unpack("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            # llama.cpp keeps token texts as bytes; surrogates carry what is not UTF-8
            return data.decode("utf-8", "surrogateescape")

    def value(self, tag: int | None = None) -> Any:
        tag = self.unpack("I") if tag is None else tag
        if tag in _SCALARS:
            return self.unpack(_SCALARS[tag])
        if tag == _STRING:
            return self.text()
        if tag != _ARRAY:
            raise CorruptFile(f"{self.where}: unknown metadata type {tag}")
        element, count = self.array()
        if element == _STRING:
            return [self.text() for _ in range(count)]
        code = f"<{count}{_SCALARS[element]}"
        return list(struct.unpack(code, self.take(struct.calcsize(code))))

    def array(self) -> tuple[int, int]:
        """The type of an array's elements, and how many there are."""
        element, count = self.unpack("I"), self.unpack("Q")
        if element not in _SCALARS and element != _STRING:
            raise CorruptFile(f"{self.where}: metadata arrays of type {element} are not read")
        if count > MAX_ITEMS:
            raise CorruptFile(f"{self.where}: a metadata array of {count}; {MAX_ITEMS} are read")
        return element, count

    def skip(self) -> None:
        """Pass over a value without making it."""
        tag = self.unpack("I")
        if tag in _SCALARS:
            self.take(struct.calcsize("<" + _SCALARS[tag]))
            return
        if tag == _STRING:
            self.take(self.unpack("Q"))
            return
        if tag != _ARRAY:
            raise CorruptFile(f"{self.where}: unknown metadata type {tag}")
        element, count = self.array()
        if element != _STRING:
            self.take(count * struct.calcsize("<" + _SCALARS[element]))
            return
        data, at, size = self.data, self.at, len(self.data)
        if at + 8 * count > size:
            raise _Short(at + 8 * count)
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise _Short(at + 8)
            at += 8 + length(data, at)[0]
        if at > size:
            raise _Short(at)
        self.at = at

    def header(self, file_size: int) -> Header:
        self.take(len(MAGIC))
        version = self.unpack("I")
        if version in (2 << 24, 3 << 24):
            raise UnsupportedSource(
                f"{self.where}: a big-endian GGUF file; llama.cpp's gguf_convert_endian.py makes a "
                "little-endian one of it"
            )
        if version not in (2, 3):
            raise UnsupportedSource(
                f"{self.where}: GGUF version {version}; versions 2 and 3, little-endian, are read"
            )
        n_tensors, n_kv = self.unpack("Q"), self.unpack("Q")
        if n_tensors * _TENSOR_BYTES + n_kv * _KEY_BYTES > file_size or n_kv > 1 << 20:
            raise CorruptFile(
                f"{self.where}: {n_tensors} tensors and {n_kv} keys cannot be right in a file of "
                f"{file_size} bytes; it is truncated or damaged"
            )
        kv = tuple(self.key_value() for _ in range(n_kv))
        tensors = tuple(self.tensor() for _ in range(n_tensors))
        n = next((item.value for item in kv if item.key == "general.alignment"), ALIGNMENT)
        if not isinstance(n, int) or n < LEAST_ALIGNMENT or n & (n - 1):
            raise CorruptFile(
                f"{self.where}: general.alignment is {n!r}, not a power of two from "
                f"{LEAST_ALIGNMENT} on"
            )
        return Header(kv, tensors, align(self.at, n), n)

    def key_value(self) -> KeyValue:
        key, start = self.text(), self.at
        self.skip()
        return KeyValue(key, self.data[start : self.at])

    def tensor(self) -> TensorInfo:
        name, n_dims = self.text(), self.unpack("I")
        if not name or _CONTROL.search(name):
            raise CorruptFile(f"{self.where}: a tensor's name is {name!r}")
        if not 1 <= n_dims <= 4:
            raise CorruptFile(f"{self.where}: tensor {name} has {n_dims} dimensions")
        *dims, kind, offset = _INFOS[n_dims].unpack(self.take(_INFOS[n_dims].size))
        return TensorInfo(name, tuple(dims[::-1]), kind, offset)
