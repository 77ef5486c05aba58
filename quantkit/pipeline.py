"""Carry a plan out: read each row once, make every output's rows from it, write them in place.

Workers take chunks; what one does depends on no other, so memory is bounded by workers x chunk.
An output is a `.partial` file until all of it is on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit import disk
from quantkit.checkpoint import Files, SourceTensor
from quantkit.errors import DiskFull, NonFiniteWeight, OutputError, OutputExists
from quantkit.plan import Chunk, Plan, PlannedTensor
from quantkit.rows import dequantize, fetch, source_row

Progress = Callable[[int], None]  # bytes of the source that are done
Importance = Mapping[str, "np.ndarray[Any, np.dtype[np.float32]]"]
Target = tuple[PlannedTensor, Path, int]  # a tensor, the file it goes to, its descriptor


def default_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_outputs(plan: Plan, force: bool) -> None:
    """Everything about the outputs that can be known before the first byte.

    Raises OutputExists, DiskFull, OutputError (no such directory; an input would be overwritten).
    """
    inputs = {t.path.resolve() for t in plan.sources.values()}
    needed: dict[Path, int] = {}
    for f in plan.files:
        parent = f.path.resolve().parent
        if not parent.is_dir():
            raise OutputError(f"{parent}: no such directory; make it first")
        if f.path.resolve() in inputs:
            raise OutputError(f"{f.path} is the input; name another output with -o")
        if f.path.exists() and not force:
            raise OutputExists(f"{f.path} exists already; --force overwrites it")
        needed[parent] = needed.get(parent, 0) + f.size
    for parent, size in needed.items():
        if size > (free := disk.free_bytes(parent)):
            raise DiskFull(
                f"{parent}: {size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free; "
                "make room, or name another disk with -o"
            )


def execute(
    plan: Plan, threads: int, progress: Progress = lambda done: None,
    importance: Importance = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write every file of the plan.

    `importance` holds float32 `[experts, n_per_row]` (one row for a plain matrix) by tensor name.
    Raises NonFiniteWeight, CorruptFile, DiskFull, OutputError; nothing is left behind then.
    """
    paths = [t.path for t in plan.sources.values() if t.data is None]
    with Files(paths) as files, _outputs(plan) as fds:
        targets = _targets(plan, fds)

        def work(chunk: Chunk) -> int:
            return _process(chunk, plan, files, targets[chunk.tensor], importance)

        with ThreadPoolExecutor(threads) as pool:
            pending: set[Future[int]] = set()
            try:
                for chunk in plan.chunks():
                    if len(pending) >= 2 * threads:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        for future in done:
                            progress(future.result())
                    pending.add(pool.submit(work, chunk))
                for future in pending:
                    progress(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _targets(plan: Plan, fds: dict[Path, int]) -> dict[str, list[Target]]:
    """Where each tensor goes, equal formats side by side so that each is made once."""
    targets: dict[str, list[Target]] = {name: [] for name in plan.segments}
    for f in plan.files:
        for t in f.tensors:
            targets[t.name].append((t, f.path, fds[f.path]))
    for found in targets.values():
        found.sort(key=lambda target: target[0].format)
    return targets


def _process(
    chunk: Chunk, plan: Plan, files: Files, targets: list[Target], importance: Importance
) -> int:
    """One chunk into every file. Returns the bytes that were read."""
    source = plan.sources[chunk.segment.source]
    rows = fetch(chunk, plan, files)
    floats: np.ndarray[Any, Any] | None = rows if source.ggml.is_float else None
    weights = importance.get(chunk.tensor)
    if weights is not None:
        n_rows = targets[0][0].weights // chunk.segment.row_length(source)
        weights = weights[chunk.row // (n_rows // len(weights))]
    format_made, made = "", memoryview(b"")
    for t, path, fd in targets:
        if t.format != format_made:
            copied = t.format == source.ggml.name and (plan.verbatim or floats is not rows)
            if not copied and floats is None:
                floats = dequantize(rows, source)
            data = rows if copied else _quantized(floats, t, weights, chunk, source)
            format_made, made = t.format, np.ascontiguousarray(data).data.cast("B")
        row_bytes = len(made) // chunk.count
        _write(fd, made, t.offset + chunk.row * row_bytes, path)
    return chunk.segment.source_bytes(source, chunk.count)


def _quantized(
    rows: Any, t: PlannedTensor, importance: Any, chunk: Chunk, source: SourceTensor
) -> np.ndarray[Any, Any]:
    import quant_types

    if importance is not None and not quant_types.get_format(t.format).takes_importance:
        importance = None
    try:
        data: np.ndarray[Any, Any] = quant_types.quantize(rows, t.format, importance)
        return data
    except quant_types.NotFinite as e:
        raise NonFiniteWeight(
            f"{source.path.name}: tensor {source.name} has NaN or infinity "
            f"in row {source_row(chunk, e.row)}; the checkpoint is damaged"
        ) from None


def _write(fd: int, data: memoryview, offset: int, path: Path) -> None:
    try:
        disk.pwrite(fd, data, offset)
    except OSError as e:
        raise _output_error(e, path) from None


def _output_error(e: OSError, path: Path) -> OutputError:
    import errno

    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{path}: the disk is full ({e.strerror}); make room and run it again")
    return OutputError(f"{path}: cannot be written ({e.strerror})")


@contextmanager
def _outputs(plan: Plan) -> Iterator[dict[Path, int]]:
    """The files of the plan, open at their full size under `.partial` names; renamed if the body
    ends well, removed if it does not. Yields their descriptors by final path."""
    fds: dict[Path, int] = {}
    try:
        for f in plan.files:
            try:
                fds[f.path] = disk.open_write(_partial(f.path))
                disk.reserve(fds[f.path], f.size)
            except OSError as e:
                raise _output_error(e, f.path) from None
            _write(fds[f.path], memoryview(f.header), 0, f.path)
        yield fds
        for fd in fds.values():
            os.fsync(fd)
        for f in plan.files:
            os.close(fds.pop(f.path))
            os.replace(_partial(f.path), f.path)
    finally:
        for path, fd in fds.items():
            os.close(fd)
            _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
