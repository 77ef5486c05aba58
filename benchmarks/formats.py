"""Rates of every format against ggml's, in one process: `python -m benchmarks.formats`.

Each figure is the median of runs that take turns, so that a busy machine slows all alike. Weights
are float32 and normal; ratios are to `ggml_quantize_chunk` on one thread. Two threads are compared
with one by the best run of each, since they show what they gain only while a second core is free.

`--features avx2` compiles the kernels, in this process, for a processor without AVX-512. What the
processor's vector units do at best is printed beside (`benchmarks.throughput`).
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

import quant_types
from benchmarks.measure import write_section
from benchmarks.throughput import operations, vector_width
from quant_types import BlockFormat, kernels
from quant_types.engines import kernel_name
from tests import oracle

ROWS, N = 256, 4096
RUNS = 9
NARROW = "haswell"  # the processor that stands for all with AVX2 alone


def compile_for_avx2(formats: list[BlockFormat]) -> None:
    """Have the lanes engine use kernels for a processor with AVX2 and no more."""
    known = kernels._llvm().get_host_cpu_features()
    wide = ("avx512", "avx10", "amx")
    features = ",".join(
        f"{'-' if name.startswith(wide) or not there else '+'}{name}"
        for name, there in sorted(known.items())
    )
    kernels.target = lambda: (NARROW, features)
    kernels.cache_dir.cache_clear()  # it is named by the processor
    os.environ.update(kernels.NUMBA)
    os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = NARROW, features
    names = {kernel_name(fmt, importance) for fmt in formats for importance in (False, True)}
    for name in sorted(names):
        kernels.use(name, code_here(name))


def code_here(name: str) -> bytes:
    """A kernel's object code, from the cache or else compiled; for AVX2 in this process."""
    if kernels.target()[0] != NARROW:
        return kernels._object(name)
    path = kernels.cache_dir() / f"{name}.kernel"
    code = kernels._kept(path)
    if code is None:
        from quant_types.lanes.compile import object_code

        code = object_code(name)
        kernels.keep(path, code)
    return code


def measure(calls: list[Callable[[], object]]) -> list[list[float]]:
    """Seconds of each call in runs that take turns, in order; the first run is not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    for run in range(RUNS + 1):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if run:
                taken.append(time.perf_counter() - start)
    return [sorted(taken) for taken in seconds]


def threads(lanes: Callable[[slice], None], rows: int, seconds: float) -> float:
    """How many times faster two threads do what takes one of them `seconds`."""
    repeats = max(1, round(0.03 / seconds))  # long enough that handing out work costs nothing
    halves = (slice(0, rows // 2), slice(rows // 2, None))

    def half(part: slice) -> None:
        for _ in range(repeats):
            lanes(part)

    with ThreadPoolExecutor(2) as pool:
        one, two = measure([lambda: list(map(half, halves)), lambda: list(pool.map(half, halves))])
    return one[0] / two[0]


def row(fmt: BlockFormat, x: np.ndarray, importance: np.ndarray | None) -> str:
    """A format's line of the table."""
    out = np.empty((len(x), fmt.row_bytes(x.shape[1])), np.uint8)

    def lanes(rows: slice) -> None:
        quant_types.quantize(x[rows], fmt, importance, "lanes", out[rows])

    runs = measure(
        [
            lambda: oracle.quantize(x, fmt.name, importance),
            lambda: lanes(slice(None)),
            lambda: quant_types.quantize(x, fmt, importance, "array", out),
        ]
    )
    ggml, one, array = (float(np.median(taken)) for taken in runs)
    name = fmt.name + ("" if importance is None else ", importance")
    millions = x.size / 1e6
    return (
        f"| {name} | {millions / ggml:.1f} | {millions / one:.0f} | {ggml / one:.1f} "
        f"| {threads(lanes, len(x), one):.2f} | {millions / array:.1f} | {ggml / array:.2f} |"
    )


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(formats: list[BlockFormat]) -> str:
    """The Markdown table, and what it was measured with."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((ROWS, N)) * 0.02).astype(np.float32)
    importance = np.square(rng.standard_normal(N)).astype(np.float32)
    lines = [
        f"Measured on {cpu()}, for {kernels.target()[0]}, {oracle.stamp()}, "
        f"numba {version('numba')}, numpy {version('numpy')}; millions of weights a second. "
        f"A loop of additions and multiplications does {operations():.1f} thousand million "
        f"a second, of {vector_width()} float32 each.",
        "",
        "| format | ggml | lanes | times ggml | two threads | array | times ggml |",
        "|---|---|---|---|---|---|---|",
    ]
    for fmt in formats:
        if not fmt.needs_importance:
            lines.append(row(fmt, x, None))
        if fmt.takes_importance:
            lines.append(row(fmt, x, importance))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="formats, all of them by default")
    parser.add_argument("--features", choices=["host", "avx2"], default="host")
    parser.add_argument("--write", type=Path, help="a page with the markers to write between")
    options = parser.parse_args()
    names = options.names or [fmt.name for fmt in quant_types.FORMATS]
    formats = [quant_types.get_format(name) for name in names]
    if options.features == "avx2":
        compile_for_avx2(formats)
    text = table(formats)
    print(text)
    if options.write:
        write_section(options.write, "formats", text)


if __name__ == "__main__":
    main()
