"""Headers of `.bin` and `.pth` checkpoints, without torch and without running what is in them.

`torch.save` writes a zip: `data.pkl`, which says how tensors are put together, and the bytes of
each storage, not compressed. What the pickle puts together is in `torch_pickle.py`.
"""

from __future__ import annotations

import errno
import io
import struct
import zipfile
import zlib
from math import prod
from typing import Any

from quantkit.errors import CorruptFile, UnsupportedSource
from quantkit.source.safetensors import MAX_AXES, Entry
from quantkit.source.torch_pickle import Code, Malformed, Tensor, read_pickle
from quantkit.storage.inputs import File, Input, open_input
from quantkit.storage.substitutes import substitute

_MALFORMED = (
    Malformed, struct.error, KeyError, IndexError, TypeError, ValueError, AttributeError, EOFError,
    OverflowError, MemoryError, NotImplementedError, RuntimeError, zlib.error,
)  # fmt: skip
_MAX_PICKLE = 1 << 26  # bytes; a hundred thousand tensors have some 15 MB
_MAX_RECORDS = 1 << 20


class _At(io.RawIOBase):
    """An input as zipfile wants it."""

    def __init__(self, source: Input) -> None:
        self.source, self.at = source, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self.at, self.source.size)[whence]
        if at < 0 and whence == io.SEEK_END:  # as of a file: zipfile takes it for too short
            raise OSError(errno.EINVAL, "an offset before the file")
        if at < 0:
            raise ValueError("an offset before the file")
        self.at = at
        return at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        data = self.source.pread(len(buffer), self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


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
        if what := substitute(bytes(source.pread(256, 0))):
            raise UnsupportedSource(f"{path}: {what}") from None
        raise CorruptFile(f"{path}: not a whole torch file; download it again") from None
    except Code as e:
        raise CorruptFile(
            f"{path}: holds {e}, which is code and not weights; it is not run"
        ) from None
    except UnsupportedSource as e:
        raise UnsupportedSource(f"{path}: {e}" if str(path) not in str(e) else str(e)) from None
    except _MALFORMED as e:
        reason = " ".join(str(e).split())
        raise CorruptFile(f"{path}: malformed torch file ({type(e).__name__}: {reason})") from None
    finally:
        source.close()


def _entries(path: File, source: Input, archive: zipfile.ZipFile) -> list[Entry]:
    if len(archive.infolist()) > _MAX_RECORDS:
        raise CorruptFile(f"{path}: {len(archive.infolist())} records; {_MAX_RECORDS} are read")
    records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "byteorder" in records and _small(path, archive, records["byteorder"], 16) != b"little":
        raise UnsupportedSource(f"{path}: big-endian; little-endian files are read")
    state = read_pickle(_small(path, archive, records["data.pkl"], _MAX_PICKLE))
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise CorruptFile(f"{path}: a table of tensors is expected, not {type(state).__name__}")
    return [_entry(path, source, records, name, t) for name, t in state.items()]


def _small(path: File, archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """A record of at most so many bytes. Raises CorruptFile."""
    if info.file_size > most or info.compress_size > most:
        raise CorruptFile(
            f"{path}: {info.file_size} bytes in {info.filename[-40:]!r}, more than any model has"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CorruptFile(f"{path}: {info.filename[-40:]!r} is compressed as torch never does")
    return archive.read(info)


def _entry(
    path: File, source: Input, records: dict[str, zipfile.ZipInfo], name: Any, t: Any
) -> Entry:
    if not isinstance(name, str) or not isinstance(t, Tensor):
        raise CorruptFile(f"{path}: {name!r} is not a tensor")
    if len(t.shape) > MAX_AXES or len(t.stride) != len(t.shape):
        raise CorruptFile(f"{path}: tensor {name} has {len(t.shape)} axes; {MAX_AXES} are read")
    rows_first = tuple(prod(t.shape[i + 1 :]) for i in range(len(t.shape)))
    if any(a != b and n > 1 for a, b, n in zip(t.stride, rows_first, t.shape, strict=True)) or min(
        t.offset, *t.shape, 0
    ):
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
    if end > source.size:
        raise CorruptFile(f"{path}: tensor {name} is longer than its file")
    return Entry(name, t.storage.dtype, t.shape, start, end)
