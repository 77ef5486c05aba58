"""Whether a GGUF model holds together by itself: what llama.cpp would trip over, or run wrongly.

Headers only. Every fault is a line that says what is there and what should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from quantkit.gguf.container import ALIGNMENT, Header, align, read_header
from quantkit.gguf.splits import split_siblings
from quantkit.gguf.types import tensor_bytes
from quantkit.loading import formats
from quantkit.loading import model as loading
from quantkit.loading.kinds import ENCODER
from quantkit.loading.values import Info
from quantkit.source.tensors import SourceTensor


def faults(header: Header, tensors: Sequence[SourceTensor]) -> list[str]:
    """All that is wrong with a model: `header` is the first of its files, `tensors` are those of
    all of them. Raises what reading the headers of the others does."""
    infos = [Info(t.name, t.shape, t.ggml.name) for t in tensors]
    found = loading.faults(header.kv, infos)
    if header.get("general.architecture") != ENCODER:
        found += formats.faults(infos)
    files: dict[Path, list[SourceTensor]] = {}
    for t in tensors:
        assert isinstance(t.path, Path)
        files.setdefault(t.path, []).append(t)
    whole = header.get("split.count", 0) < 2
    for path, held in files.items():
        its = header if whole else read_header(path)
        if not whole:
            found += [f"{path.name}: {text}" for text in loading.split_faults(its.kv)]
        found += _layout(path, its, held)
    return found


def _layout(path: Path, header: Header, held: Sequence[SourceTensor]) -> Iterator[str]:
    """Tensors tile their file, in the order in which they are listed: the first begins at the data,
    each of the others where the one before it ends (gguf_init_from_reader), and so does the file.
    Where files are mapped, all begin where the processor can read them (ggml-backend.cpp)."""
    due, before = header.data_offset, "the data"
    end = due
    for t in held:
        if t.offset != due:
            yield f"{path.name}: {t.name} begins at byte {t.offset}, and {before} ends at {due}"
            return
        if t.offset % ALIGNMENT:
            yield f"{path.name}: {t.name} begins at byte {t.offset}, no multiple of {ALIGNMENT}"
            return
        end = t.offset + tensor_bytes(t.shape, t.ggml.name)
        due, before = align(end, header.alignment), t.name
    size = path.stat().st_size
    if size not in (end, due):
        yield f"{path.name}: {size} bytes, of which {due} are accounted for"


def first_split(path: Path) -> Path:
    """The file of a set of splits that llama.cpp is given; a file that is not split is its own."""
    return path.with_name(split_siblings(path.name)[0])
