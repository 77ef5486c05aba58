"""How many cores a run could keep busy, simulated on few:
`python -m benchmarks.cores WORK_DIR`.

What releases the interpreter's lock (kernels, the copies of rows, writes) is replaced by sleeps of
the time that it takes one core alone. What is left is Python, of which one thread runs at a time:
its CPU time is how long the lock is held.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

import quant_types
from benchmarks import make_checkpoint
from benchmarks.pipeline import EIGHT
from quant_types import kernels
from quant_types.engines import kernel_name
from quantkit.execution import pipeline
from quantkit.jobs import prepare
from quantkit.planning.schedule import Schedule, schedule
from quantkit.storage import direct_io, os_files

THREADS = (1, 2, 4, 8, 16, 32, 64)
TYPES = {"Q8_0": ["Q8_0"], "Q4_K_M": ["Q4_K_M"], "eight types": list(EIGHT)}
SAMPLE = 1 << 21  # weights
BYTES_A_SECOND = 4e9  # copied out of the system's cache, or written, by one thread


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    source = work / "hollow"
    make_checkpoint.hollow(source, options.layers, 8)

    def say(*cells: str) -> None:
        print(f"| {' | '.join(cells)} |", flush=True)

    say("threads", *(f"{label}: faster | lock, µs a chunk | most cores" for label in TYPES))
    say(*["---"] * (1 + 3 * len(TYPES)))
    alone: dict[str, float] = {}
    for threads in THREADS:
        cells = []
        for label, types in TYPES.items():
            job = prepare(source, types, work / "out")
            order = schedule(job.plan, threads)
            seconds, held = simulated(order)
            alone.setdefault(label, seconds)
            n = sum(1 for _ in order.chunks())
            most = alone[label] / held
            cells += [f"{alone[label] / seconds:.1f}", f"{held / n * 1e6:.0f}", f"{most:.0f}"]
        say(str(threads), *cells)


def simulated(order: Schedule) -> tuple[float, float]:
    """Seconds that the rows of a run would take, and for how many of them the lock was held."""
    names = {t.format for o in order.plan.outputs for t in o.by_name.values()}
    formats = [quant_types.get_format(n) for n in names if n not in ("F32", "F16", "BF16")]
    fakes = {(name := kernel_name(fmt, False)): sleeping(name) for fmt in formats}
    with contextlib.ExitStack() as patches:
        for where, name, new in (
            (pipeline, "fetch", fetch),
            (os_files, "reserve", lambda *a: None),
            (os_files, "pwrite", lambda fd, data, offset: wait(len(data))),
            (direct_io, "write", lambda direct, fd, pages: wait(sum(map(len, pages.parts)))),
        ):
            patches.enter_context(mock.patch.object(where, name, new))
        patches.enter_context(mock.patch.dict(kernels._loaded, fakes))
        seconds, cpu = time.perf_counter(), time.process_time()
        pipeline.execute(order, force=True)
        seconds, cpu = time.perf_counter() - seconds, time.process_time() - cpu
    for f in order.plan.files:
        f.path.unlink()
    return seconds, cpu


def wait(nbytes: int) -> None:
    """The time that bytes take to be copied."""
    time.sleep(nbytes / BYTES_A_SECOND)


def fetch(chunk: Any, plan: Any, files: Any) -> Any:
    """Rows like those of a chunk."""
    length = chunk.segment.row_length(plan.sources[chunk.segment.source])
    wait(2 * length * chunk.count)
    return _ROWS[: length * chunk.count].reshape(chunk.count, length)


_ROWS = np.zeros(SAMPLE, ml_dtypes.bfloat16)
_seconds: dict[str, float] = {}  # a weight, by kernel


def sleeping(name: str) -> Callable[..., int]:
    """A kernel that sleeps as long as the real one works on as many weights."""
    if name not in _seconds:
        fmt = next(f for f in quant_types.FORMATS if kernel_name(f, False) == name)
        rng = np.random.default_rng(1)
        rows = (rng.standard_normal((512, 4096), np.float32) * 0.02).astype(ml_dtypes.bfloat16)
        _seconds[name] = min(_timed(rows, fmt) for _ in range(5)) / rows.size
    a_weight = _seconds[name]

    def kernel(x: int, weights: int, *rest: Any) -> int:
        time.sleep(weights * a_weight)
        return -1

    return kernel


def _timed(rows: Any, fmt: quant_types.BlockFormat) -> float:
    begin = time.thread_time()  # others may be at work on the machine
    quant_types.quantize(rows, fmt)
    return time.thread_time() - begin


if __name__ == "__main__":
    main()
