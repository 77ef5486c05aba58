"""Headers of `.bin` and `.pth` checkpoints, without torch and without running what is in them.

`torch.save` writes a zip: `data.pkl`, which says how tensors are put together, and the bytes of
each storage, not compressed. The pickle is read with the few names that such a file needs; any
other would be code, and is refused.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from quantkit.errors import CorruptFile, UnsupportedSource
from quantkit.source.safetensors import Entry
from quantkit.storage.inputs import File, Input, open_input

_STORAGES = {"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
             "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "CharStorage": ("I8", 1),
             "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1), "DoubleStorage": ("F64", 8),
             "ShortStorage": ("I16", 2)}  # fmt: skip
_MALFORMED = (
    pickle.UnpicklingError, struct.error, KeyError, IndexError, TypeError, ValueError,
    AttributeError, EOFError, OverflowError, MemoryError, NotImplementedError,
)  # fmt: skip
_MAX_PICKLE = 1 << 28  # bytes


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int  # bytes of a weight


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # weights
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _At(io.RawIOBase):
    """An input as zipfile wants it."""

    def __init__(self, source: Input) -> None:
        self.source, self.at = source, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.source.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        data = self.source.pread(len(buffer), self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


class _Code(Exception):
    """The pickle names something that is no part of a state dict."""


class _Unpickler(pickle.Unpickler):
    """Reads the pickle of a state dict; every name that it may use is here."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
        }
        if (module, name) not in allowed:
            if module == "torch" and name.endswith("Storage"):
                raise UnsupportedSource(f"weights in a {name} are not read")
            raise _Code(f"{module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, *_ = pid
        if kind != "storage" or storage not in _STORAGES:
            raise _Code(f"{kind} {storage}")
        return _Storage(str(key), *_STORAGES[storage])


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *rest: Any
) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def read_torch_entries(path: File) -> list[Entry]:
    """The tensors of one file, in its own order.

    Raises CorruptFile (not such a file, or code in it) and UnsupportedSource (as torch wrote them
    before version 1.6; tensors that are not contiguous).
    """
    source = open_input(path)
    try:
        with zipfile.ZipFile(io.BufferedReader(_At(source))) as archive:
            return _entries(path, source, archive)
    except zipfile.BadZipFile:
        if source.pread(2, 0)[:1] == b"\x80":
            raise UnsupportedSource(
                f"{path}: written by an old torch; load it and save it again as safetensors"
            ) from None
        raise CorruptFile(f"{path}: not a whole torch file; download it again") from None
    except _Code as e:
        raise CorruptFile(
            f"{path}: holds {e}, which is code and not weights; it is not run"
        ) from None
    except _MALFORMED as e:
        reason = " ".join(str(e).split())
        raise CorruptFile(f"{path}: malformed torch file ({type(e).__name__}: {reason})") from None
    finally:
        source.close()


def _entries(path: File, source: Input, archive: zipfile.ZipFile) -> list[Entry]:
    records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if records["data.pkl"].file_size > _MAX_PICKLE:
        raise CorruptFile(f"{path}: {records['data.pkl'].file_size} bytes say what is in it")
    if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
        raise UnsupportedSource(f"{path}: big-endian; little-endian files are read")
    state = _Unpickler(io.BytesIO(archive.read(records["data.pkl"]))).load()
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise CorruptFile(f"{path}: a table of tensors is expected, not {type(state).__name__}")
    out = []
    for name, t in state.items():
        if not isinstance(name, str) or not isinstance(t, _Tensor):
            raise CorruptFile(f"{path}: {name!r} is not a tensor")
        rows_first = tuple(prod(t.shape[i + 1 :]) for i in range(len(t.shape)))
        if any(
            a != b and n > 1 for a, b, n in zip(t.stride, rows_first, t.shape, strict=True)
        ) or min(t.offset, *t.shape, 0):
            raise UnsupportedSource(f"{path}: tensor {name} is a view; save it as safetensors")
        info, at = records[f"data/{t.storage.key}"], t.offset * t.storage.size
        if info.compress_type != zipfile.ZIP_STORED:
            raise CorruptFile(f"{path}: tensor {name} is compressed, which torch never does")
        if at + prod(t.shape) * t.storage.size > info.file_size:
            raise CorruptFile(f"{path}: tensor {name} is longer than its bytes")
        local = source.pread(30, info.header_offset)  # its name and extra field may differ in size
        lengths = struct.unpack("<HH", local[26:30])
        start = info.header_offset + 30 + sum(lengths) + at
        end = start + prod(t.shape) * t.storage.size
        out.append(Entry(name, t.storage.dtype, t.shape, start, end))
    return out
