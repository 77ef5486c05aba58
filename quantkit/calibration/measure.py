"""Importance matrices made: a model in llama.cpp reads text, in a process of its own (`run.py`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from quantkit import errors
from quantkit.calibration import ahead
from quantkit.calibration.run import Task, Texts, lock_path
from quantkit.calibration.sums import CHUNK_SIZE
from quantkit.errors import ImatrixError, OutputExists, SourceNotFound
from quantkit.gguf.container import read_header
from quantkit.gguf.splits import split_siblings
from quantkit.llama import apart
from quantkit.llama.llama_cpp import library
from quantkit.progress import SILENT, Progress
from quantkit.storage import os_files
from quantkit.storage.whole import check_name, make_directory

EVERY = 10  # chunks, after which what is done is on the disk (llama-imatrix's default)
_PLACES, _SAMPLE = 64, 1 << 16  # of a model's file that tell it from another, and their bytes


@dataclass(frozen=True)
class Options:
    """How a matrix is made, as llama-imatrix does it: `chunks` of `context` tokens (None: all of
    the text), from chunk `first` on. `outputs`: also for the output matrix; `special`: control
    tokens that are spelled in the text are taken for what they are; `copies`: a copy of the matrix
    every so many chunks (0: none); `dat`: in the older format. `least`: tokens that every expert is
    to see (0: as many as come its way); `at_once`: chunks that go through a layer together (0: as
    many as llama-imatrix takes); `nextn`: also for the layers that predict further tokens."""

    context: int = CHUNK_SIZE
    chunks: int | None = None
    first: int = 0
    outputs: bool = False
    special: bool = False
    perplexity: bool = True
    copies: int = 0
    dat: bool = False
    least: int = 0
    at_once: int = 0
    nextn: bool = False


AS_LLAMA_IMATRIX = Options()


@dataclass(frozen=True)
class Measured:
    """What a run tells: the perplexity over the text (None: not taken); `further`: experts a token
    (0: the model's own) and chunks of every stage after the first; `reached`: `TENSOR EXPERT` that
    only a wider routing brought above the least."""

    path: Path
    perplexity: float | None = None
    further: Sequence[tuple[int, int]] = ()
    reached: Sequence[str] = field(default=(), repr=False)


def measure(
    model: Path,
    texts: Sequence[Path],
    output: Path,
    options: Options = AS_LLAMA_IMATRIX,
    *,
    threads: int | None = None,
    names: Sequence[str] = (),
    made_from: str = "",
    force: bool = False,
    progress: Progress = SILENT,
) -> Measured:
    """Make the importance matrix of a GGUF file (or the first of a set) from texts in UTF-8.

    `names` are those that the texts have in it, if not their paths; `made_from` is noted in it.

    A run that was stopped goes on. Raises LlamaMissing, LlamaError (llama.cpp does not run it, or
    NaN), SourceNotFound, ImatrixError (a text that is empty, too short or not UTF-8), OutputExists,
    OutputInUse, JournalMismatch.
    """
    library()
    for path in texts:
        check_text(path)
    state = output.with_name(output.name + ".partial")
    if output.exists() and not force and not state.exists():
        raise OutputExists(f"{output} exists; give --force to overwrite it")
    check_name(state, len(".") + len(".lock"))
    _check_room(model, output, options)
    make_directory(output.parent)
    there = ahead.wanted(ahead.of_file(model), model) if options.nextn else ahead.Found()
    identity = _identity(model, texts, options)
    task = Task(
        model=str(model.absolute()),
        texts=tuple(str(p.absolute()) for p in texts),
        datasets=tuple(names or map(str, texts)),
        output=str(output.absolute()),
        state=str(state.absolute()),
        identity=identity,
        threads=threads,
        every=EVERY,
        made_from=made_from,
        to_the_end=there.outputs,
        **asdict(options) | {"nextn": there.count},
    )
    try:
        told = _carried_out(task, progress)
    except errors.JournalMismatch:
        if not force:
            raise
        state.unlink()
        told = _carried_out(task, progress)
    return Measured(
        output,
        told["perplexity"],
        tuple((used, chunks) for used, chunks in told["came"][1:] if chunks),
        tuple(told["reached"]),
    )


def _check_room(model: Path, output: Path, options: Options) -> None:
    """Raises DiskFull where there is no room for a float32 for each channel of each matrix: before
    the text is read, which may take hours."""
    headers = [read_header(file) for file in _splits(model)]
    needed = sum(
        4 * t.shape[-1] * prod(t.shape[:-2])
        for header in headers
        for t in header.tensors
        if t.name.startswith("blk.") and t.name.endswith(".weight") and len(t.shape) > 1
    )
    there = os_files.nearest(os_files.real(output.parent))
    if needed > (free := os_files.free_bytes(there)):
        raise errors.DiskFull(
            f"{there}: {needed:,} bytes needed, {free:,} free; make room, or name another disk "
            "with -o"
        )


def _carried_out(task: Task, progress: Progress) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        for told in apart.tell("quantkit.calibration.run", asdict(task), task.model):
            if "counts" in told:
                found = dict(told["counts"])
            else:
                progress.count(_words(told), told["done"], told["total"], _beside(told))
    finally:
        _tidy(lock_path(Path(task.state)))
    return found


def _tidy(lock: Path) -> None:
    """Remove what a run that was stopped has left, if no other holds it."""
    if lock.exists():
        with contextlib.suppress(OSError):
            held = os_files.open_locked(lock)
            try:
                lock.unlink()
            finally:
                os.close(held)


def _words(told: Mapping[str, Any]) -> str:
    if told["used"]:
        return f"chunks, {told['used']} experts a token"
    return "further chunks" if told["stage"] else "chunks"


def _beside(told: Mapping[str, Any]) -> str:
    if told["stage"]:
        return f"{told['missing']} to be reached"
    return f"perplexity {told['perplexity']:.4f}" if told["perplexity"] else ""


def check_text(path: Path) -> None:
    """Raises SourceNotFound (a pipe, too: texts are read more than once), ImatrixError: a text that
    is empty, or not UTF-8."""
    try:
        data = os_files.read_file(path)
    except OSError as e:
        raise SourceNotFound(f"{path}: cannot be read ({e.strerror})") from None
    if not data.strip():
        raise ImatrixError(f"{path}: an empty text")
    try:
        data.decode()
    except UnicodeDecodeError as e:
        raise ImatrixError(
            f"{path}: not UTF-8: byte {data[e.start]:#04x} at {e.start}; convert it first"
        ) from None


def check_length(
    vocabulary: Path, texts: Sequence[Path], names: Sequence[str], options: Options
) -> None:
    """Raises ImatrixError: a text has too few tokens for a chunk, going by a GGUF file that need
    have no tensors; LlamaMissing, LlamaError."""
    library()
    question = Texts(
        str(vocabulary.absolute()),
        tuple(str(p.absolute()) for p in texts),
        tuple(names),
        options.context,
        options.first,
        options.special,
    )
    for _ in apart.tell("quantkit.calibration.run", asdict(question), question.model):
        pass


def _identity(model: Path, texts: Sequence[Path], options: Options) -> str:
    """What tells a run from another: SHA-256 of the model's header and of samples of its weights,
    of the texts, and of the options."""
    digest = hashlib.sha256()
    for file in _splits(model):
        digest.update(sampled(file))
    for path in texts:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(json.dumps(asdict(options), sort_keys=True).encode())
    return digest.hexdigest()


def _splits(model: Path) -> list[Path]:
    return [model.with_name(name) for name in split_siblings(model.name)]


def sampled(file: Path) -> bytes:
    """SHA-256 of a GGUF file's size, header, and samples of its weights."""
    digest = hashlib.sha256()
    fd = os_files.open_read(file)
    try:
        size, header = os.fstat(fd).st_size, read_header(file).data_offset
        digest.update(f"{size} ".encode() + os_files.pread(fd, header, 0))
        step = max((size - header) // _PLACES, 1)
        for place in range(header, size, step):
            digest.update(os_files.pread(fd, min(_SAMPLE, step), place))
    finally:
        os.close(fd)
    return digest.digest()
