"""What the benchmarks share: a command followed to its end, rates of kernels, tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import quant_types
from quantkit.execution.rows import fetch
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Schedule
from quantkit.source.tensors import Files
from tests import oracle

FLOATS = ("F32", "F16", "BF16")
WIDTH = 4096  # weights in a row of the samples


def run(arguments: list[str], directory: Path) -> dict[str, float]:
    """One `quantkit` command in a process of its own, in a directory that it finds empty: seconds
    and CPU seconds. Nobody looks at it meanwhile: what follows its memory takes 2% of two cores."""
    _empty(directory)
    start, used = time.perf_counter(), _of_children()
    process = _begun(arguments, directory)
    process.wait()
    seconds, cpu = time.perf_counter() - start, _of_children() - used
    assert process.returncode == 0
    return {"seconds": seconds, "cpu": cpu}


def peak(arguments: list[str], directory: Path) -> dict[str, float]:
    """The same command followed to its end: peak anonymous and whole resident memory (MB), seconds
    and CPU seconds."""
    _empty(directory)
    start, used = time.perf_counter(), _of_children()
    process = _begun(arguments, directory)
    found = {"anon": 0.0, "rss": 0.0}
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            for key, name in (("anon", "RssAnon"), ("rss", "VmRSS")):
                if name in lines:
                    found[key] = max(found[key], int(lines[name].split()[0]) / 1000)
        time.sleep(0.02)
    assert process.returncode == 0
    return {**found, "seconds": time.perf_counter() - start, "cpu": _of_children() - used}


def _of_children() -> float:
    """CPU seconds of all processes that this one has begun and seen end."""
    import resource

    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken.ru_utime + taken.ru_stime


_AT_WORK = """
import json, os, sys, time
from pathlib import Path
from quantkit.jobs import Run, convert, quantize
from quantkit.progress import Progress
seen = []
class Watch(Progress):
    def update(self, step, done, total):
        if done:
            seen.append((time.perf_counter(), sum(os.times()[:2])))
source, threads, *types = sys.argv[1:]
run = Run(threads=int(threads), progress=Watch())
quantize(source, types, Path(), run=run) if types else convert(source, Path(), run=run)
(start, used), (end, used_by_then) = seen[0], seen[-1]
print((used_by_then - used) / (end - start))
"""


def cores_at_work(source: Path, types: list[str], threads: int, directory: Path) -> float:
    """How many cores a job keeps busy from its first chunk to its last."""
    _empty(directory)
    command = [sys.executable, "-c", _AT_WORK, str(source), str(threads), *types]
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    os.sync()


def _begun(arguments: list[str], directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "quantkit.cli", *arguments, "--json"]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL)


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of every figure."""
    return {key: statistics.median(found[key] for found in runs) for key in runs[0]}


def ggml_seconds(plan: Plan, threads: int) -> float:
    """The least that llama-quantize takes for the plan's outputs: it spreads `ggml_quantize_chunk`
    over its threads, file after file. Measured now, all threads at work."""
    held: Counter[str] = Counter()
    for output in plan.outputs:
        for t in output.by_name.values():
            held[t.format] += t.weights
    x = _sample(64).astype(np.float32)
    return sum(
        weights * _seconds(lambda i, fmt=fmt: oracle.quantize(x, fmt), threads) / x.size
        for fmt, weights in held.items()
        if fmt not in FLOATS
    )


def kernel_seconds(plan: Plan, threads: int) -> float:
    """What our kernels alone take for the plan's outputs: the source's own rows, chunk after chunk
    as a run takes them, but all in memory before the clock starts, and nothing written. A tensor
    that has the same format in several outputs is made once. Measured now, all threads at work."""
    work = []
    with Files(plan.inputs) as files:
        for chunk in Schedule(plan).chunks():
            formats = {o.by_name[chunk.tensor].format for o in plan.outputs}
            if formats := formats.difference(FLOATS):
                work.append((fetch(chunk, plan, files), formats))

    def make(one: tuple[Any, set[str]]) -> None:
        for fmt in one[1]:
            quant_types.quantize(one[0], fmt)

    quant_types.prepare({(fmt, False) for _, formats in work for fmt in formats})
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(make, work))
        return time.perf_counter() - start


def _seconds(once: Callable[[int], object], threads: int) -> float:
    """Seconds of one call among many, of which `threads` run at a time: the median of three."""
    start = time.perf_counter()
    once(0)
    calls = max(1, round(0.15 / (time.perf_counter() - start)))

    def some(i: int) -> None:
        for _ in range(calls):
            once(i)

    taken = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(some, range(threads)))
            taken.append(time.perf_counter() - start)
    return statistics.median(taken) / (calls * threads)


def _sample(rows: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).standard_normal((rows, WIDTH)) * 0.02
    return values.astype(ml_dtypes.bfloat16)


def write_section(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- name:begin -->` and `<!-- name:end -->` of a page."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
