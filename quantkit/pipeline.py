"""Carry a plan out: read each row once, make every output's rows from it, write them in place.

Workers take chunks; what one does depends on no other, so memory is bounded by workers x chunk.
An output is a `.partial` file until all of it is on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from quantkit import disk
from quantkit.checkpoint import Files
from quantkit.errors import DiskFull, NonFiniteWeight, OutputError, OutputExists
from quantkit.plan import Chunk, Plan, PlannedFile
from quantkit.rows import fetch, source_row

Progress = Callable[[int], None]  # bytes of the source that are done
Output = tuple[PlannedFile, int]  # a planned file and the descriptor it is written through


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


def execute(plan: Plan, threads: int, progress: Progress = lambda done: None) -> None:
    """Write every file of the plan.

    Raises NonFiniteWeight, CorruptFile, DiskFull, OutputError; nothing is left behind then.
    """
    paths = [t.path for t in plan.sources.values() if t.data is None]
    with Files(paths) as files, _outputs(plan) as outputs:

        def work(chunk: Chunk) -> int:
            return _process(chunk, plan, files, outputs)

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


def _process(chunk: Chunk, plan: Plan, files: Files, outputs: list[Output]) -> int:
    """One chunk into every file. Returns the bytes that were read."""
    import quant_types

    source = plan.sources[chunk.segment.source]
    rows = fetch(chunk, plan, files)
    made: dict[str, memoryview] = {}
    for f, fd in outputs:
        t = f.by_name[chunk.tensor]
        if t.format not in made:
            made.clear()  # hold one format at a time
            if not source.ggml.is_float:  # block types are copied as they are
                made[t.format] = rows.data.cast("B")
            else:
                try:
                    data = quant_types.quantize(rows, t.format)
                except quant_types.NotFinite as e:
                    raise NonFiniteWeight(
                        f"{source.path.name}: tensor {source.name} has NaN or infinity "
                        f"in row {source_row(chunk, e.row)}; the checkpoint is damaged"
                    ) from None
                made[t.format] = data.data.cast("B")
        view = made[t.format]
        row_bytes = len(view) // chunk.count
        _write(fd, view, t.offset + chunk.row * row_bytes, f.path)
    return source.ggml.row_bytes(source.n_per_row) * chunk.count


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
def _outputs(plan: Plan) -> Iterator[list[Output]]:
    """The files of the plan, open at their full size under `.partial` names; renamed if the body
    ends well, removed if it does not."""
    outputs: list[Output] = []
    try:
        for f in plan.files:
            try:
                fd = disk.open_write(_partial(f))
                outputs.append((f, fd))
                disk.reserve(fd, f.size)
            except OSError as e:
                raise _output_error(e, f.path) from None
            _write(fd, memoryview(f.header), 0, f.path)
        yield outputs
        while outputs:
            f, fd = outputs[0]
            os.fsync(fd)
            os.close(fd)
            outputs.pop(0)
            os.replace(_partial(f), f.path)
    finally:
        for f, fd in outputs:
            os.close(fd)
            _partial(f).unlink(missing_ok=True)


def _partial(f: PlannedFile) -> Path:
    return f.path.with_name(f.path.name + ".partial")
