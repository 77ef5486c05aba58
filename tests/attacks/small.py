"""Small hostile files: GGUF with any metadata, checkpoints with one file replaced."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Entry = tuple[bytes, bytes]


def text(value: bytes) -> bytes:
    return struct.pack("<IQ", 8, len(value)) + value


def number(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def texts(*values: bytes) -> bytes:
    head = struct.pack("<IIQ", 9, 8, len(values))
    return head + b"".join(struct.pack("<Q", len(v)) + v for v in values)


ARCH: Entry = (b"general.architecture", text(b"llama"))


def gguf(
    path: Path, kv: Sequence[Entry] = (ARCH,), name: bytes = b"a", dims: Sequence[int] = (32,)
) -> Path:
    """A GGUF file of one float32 tensor, with this metadata."""
    data = b"GGUF" + struct.pack("<IQQ", 3, 1, len(kv))
    for key, value in kv:
        data += struct.pack("<Q", len(key)) + key + value
    data += struct.pack("<Q", len(name)) + name
    data += struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, 0)
    data += bytes(-len(data) % 32) + bytes(4 * dims[0])
    path.write_bytes(data)
    return path


def checkpoint(source: Path, target: Path, file: str, content: bytes | str) -> Path:
    """A copy of a checkpoint with one file replaced."""
    shutil.copytree(source, target)
    data = content.encode() if isinstance(content, str) else content
    (target / file).write_bytes(data)
    return target


def with_config(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint whose config.json says something else."""
    config = json.loads((source / "config.json").read_text()) | changes
    return checkpoint(source, target, "config.json", json.dumps(config))


def pickled(path: Path, pickle: bytes, **records: bytes) -> Path:
    """A `.bin` file with this pickle and these records."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle)
        for name, data in records.items():
            archive.writestr(f"a/{name}", data)
    return path


def alias_bomb(doublings: int = 8) -> str:
    """YAML whose last entry is 9 ** (doublings + 1) words."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    for i in range(doublings):
        before, name = chr(97 + i), chr(98 + i)
        lines.append(f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]")
    return "\n".join(lines) + "\n"
