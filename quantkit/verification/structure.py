"""Whether a GGUF model holds together by itself: what llama.cpp would trip over, or run wrongly.

Headers only. Every fault is a line that says what is there and what should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from quantkit.gguf.container import ALIGNMENT, Header, align
from quantkit.gguf.splits import split_siblings
from quantkit.gguf.types import tensor_bytes
from quantkit.loading import model as loading
from quantkit.loading.values import Info
from quantkit.source.tensors import SourceTensor


def faults(header: Header, tensors: Sequence[SourceTensor]) -> list[str]:
    """All that is wrong with a model: `header` is the first of its files, `tensors` are those of
    all of them."""
    infos = [Info(t.name, t.shape, t.ggml.name) for t in tensors]
    return [*loading.faults(header.kv, infos), *_layout(header, tensors)]


def _layout(header: Header, tensors: Sequence[SourceTensor]) -> Iterator[str]:
    """Tensors tile each file: one begins where the one before it ends, and so does the file."""
    files: dict[Path, list[SourceTensor]] = {}
    for t in tensors:
        assert isinstance(t.path, Path)
        files.setdefault(t.path, []).append(t)
    for path, held in files.items():
        alignment = header.alignment if path == tensors[0].path else ALIGNMENT  # of the first split
        end, before = 0, ""
        for t in sorted(held, key=lambda t: t.offset):
            if before and t.offset < end:
                yield f"{path.name}: tensors {before} and {t.name} overlap"
            elif before and t.offset > end:
                yield f"{path.name}: {t.offset - end} bytes before {t.name} belong to no tensor"
            before, last = t.name, t.offset + tensor_bytes(t.shape, t.ggml.name)
            end = align(last, alignment)
        size = path.stat().st_size
        if size not in (last, end):
            yield f"{path.name}: {size} bytes, of which {end} are accounted for"


def first_split(path: Path) -> Path:
    """The file of a set of splits that llama.cpp is given; a file that is not split is its own."""
    return path.with_name(split_siblings(path.name)[0])
