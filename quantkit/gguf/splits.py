"""Splits: one model in several files, each small enough to upload, copy or hand to one machine.

Names and keys are llama.cpp's: `-00001-of-00003.gguf`, `split.no`, `split.count`,
`split.tensors.count`. The first file carries all metadata, the others these three keys.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import UsageError
from quantkit.gguf.container import KeyValue

_NAME = re.compile(r"(?P<prefix>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.(?i:gguf))")
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Splits:
    """When a new file begins (0: no limit). `no_tensor_first`: the first is metadata only."""

    max_bytes: int = 0
    max_tensors: int = 0
    no_tensor_first: bool = False

    def __bool__(self) -> bool:
        return bool(self.max_bytes or self.max_tensors)

    def groups(self, sizes: Sequence[int]) -> list[range]:
        """Which tensors go into each file, by their sizes in bytes.

        A file holds at least one tensor, however large (gguf-py `GGUFWriter.add_tensor_info`).
        """
        starts, held = [0], 0
        for i, size in enumerate(sizes):
            full = self.max_tensors and i - starts[-1] >= self.max_tensors
            if i > starts[-1] and (full or (self.max_bytes and held + size > self.max_bytes)):
                starts.append(i)
                held = 0
            held += size
        first = [range(0)] if self.no_tensor_first and self else []
        return first + [range(a, b) for a, b in zip(starts, [*starts[1:], len(sizes)], strict=True)]


NO_SPLITS = Splits()


def parse_size(text: str) -> int:
    """Bytes of `300M`, `4G`, `512MB`, `4.5GB`: powers of ten, as in llama.cpp; `4GiB` is of two.
    Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(I?)B?", text.strip().upper())
    if not match or not float(match[1]):
        raise UsageError(f"{text!r} is not a size; for instance 300M or 4G")
    unit = 1024 if match[3] else 1000
    return round(float(match[1]) * float(unit ** _POWERS[match[2]]))


def size_in_bytes(size: int | str | None) -> int | None:
    """A size as a caller gives it: bytes, or text as `parse_size` takes it. Raises UsageError."""
    return parse_size(size) if isinstance(size, str) else size


def parse_numbers(text: str) -> tuple[int, ...]:
    """`3,7-9` as (3, 7, 8, 9). Raises UsageError."""
    out: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(f"{text!r} is not a list of numbers; for instance 3,7-9")
        out.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(out))


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, as a person may write it (`.GGUF`)."""
    return path.suffix.lower() == ".gguf"


def split_path(path: Path, index: int, count: int) -> Path:
    """The name of one of `count` files: `model.gguf` -> `model-00001-of-00003.gguf`. The ending is
    `.gguf` however a person writes it: llama.cpp takes splits under no other name."""
    stem = path.stem if is_gguf(path) else path.name
    return path.with_name(f"{stem}-{index + 1:05d}-of-{count:05d}.gguf")


def split_siblings(name: str) -> list[str]:
    """Every file of the set that the file `name` is one of; `[name]` if it is not split."""
    match = _NAME.fullmatch(name)
    if not match:
        return [name]
    count, suffix = int(match["count"]), match["suffix"]
    return [f"{match['prefix']}-{i + 1:05d}-of-{count:05d}{suffix}" for i in range(count)]


def split_number(name: str) -> int | None:
    """Which split a file is, from 1; None if it is whole."""
    match = _NAME.fullmatch(name)
    return int(match["no"]) if match else None


def unsplit_name(name: str) -> str:
    """A file's name without `.gguf` and without the split it is."""
    match = _NAME.fullmatch(name)
    return match["prefix"] if match else Path(name).stem


def split_keys(index: int, count: int, n_tensors: int) -> tuple[KeyValue, ...]:
    """The three keys of one file, in the order in which gguf-py and llama-quantize write them."""
    return (
        KeyValue("split.no", struct.pack("<IH", 2, index)),
        KeyValue("split.count", struct.pack("<IH", 2, count)),
        KeyValue("split.tensors.count", struct.pack("<Ii", 5, n_tensors)),
    )
