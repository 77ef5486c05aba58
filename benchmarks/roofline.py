"""Kernels for AVX-512 and for AVX2 alone, side by side against ggml and against what the vector
units of the processor do at best: `python -m benchmarks.roofline [--write docs/benchmarks.md]`.

ggml and both kernels take turns; a figure is the best of `RUNS` short runs by the thread's own
time, so that a busy machine counts little. Instructions are counted one by one
(`benchmarks.instructions`). The share of the roofline is that of the instructions that compute, all
but moves, spills, addresses and jumps, times the rate, in what a loop of independent additions and
multiplications does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import quant_types
from benchmarks.formats import NARROW, code_here, compile_for_avx2, cpu
from benchmarks.instructions import BLOCKS, count
from benchmarks.measure import write_section
from benchmarks.throughput import operations, vector_width
from quant_types import BlockFormat, kernels
from quant_types.engines import kernel_name
from tests import oracle

ROWS, N = 16, 4096
RUNS = 25
IDLE = ("moves", "spills", "others")  # instructions that do not compute
NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def least(calls: list[Callable[[], object]]) -> list[float]:
    """Seconds of the thread that each call takes at best, in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(RUNS):
        for i, call in enumerate(calls):
            begin = time.thread_time()
            call()
            best[i] = min(best[i], time.thread_time() - begin)
    return best


def row(fmt: BlockFormat, weighted: bool, codes: list[bytes], best: list[float]) -> str:
    """A line of the table. `codes`: for this processor, and for AVX2; `best`: vector operations a
    second of each, in thousands of millions."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((ROWS, N)) * 0.02).astype(np.float32)
    importance = np.square(rng.standard_normal(N)).astype(np.float32) if weighted else None
    out = np.empty((ROWS, fmt.row_bytes(N)), np.uint8)
    name = kernel_name(fmt, weighted)

    def lanes(code: bytes) -> Callable[[], object]:
        kernels.use(name, code)
        kernel = kernels.load(name)

        def call() -> None:
            kernels._loaded[name] = kernel
            quant_types.quantize(x, fmt, importance, "lanes", out)

        return call

    calls = [lambda: oracle.quantize(x, fmt.name, importance), *map(lanes, codes)]
    ggml, *ours = least(calls)
    cells = [f"{x.size / ggml / 1e6:.1f}"]
    for code, seconds, most in zip(codes, ours, best, strict=True):
        found = count(fmt, weighted, code)
        rate = x.size / seconds / 1e9
        computing = sum(n for kind, n in found.items() if kind not in IDLE) / BLOCKS / 256
        cells += [
            f"{rate * 1e3:.0f}",
            f"{ggml / seconds:.1f}",
            f"{found.total() / BLOCKS / 256:.1f}",
            f"{rate * computing / most:.2f}",
        ]
    label = fmt.name + (", importance" if weighted else "")
    return f"| {label} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="formats, by default the K-quants and IQ4")
    parser.add_argument("--write", type=Path, help="a page with the markers to write between")
    options = parser.parse_args()
    pairs = [
        (fmt, weighted)
        for fmt in map(quant_types.get_format, options.names or NAMES)
        for weighted in (False, True)
        if not (weighted and not fmt.takes_importance)
        and not (fmt.needs_importance and not weighted)
    ]
    here, width, best = kernels.target()[0], vector_width(), [operations()]
    widest = {16: "AVX-512", 8: "AVX2"}.get(width, here)
    codes = [[code_here(kernel_name(*pair)) for pair in pairs]]
    compile_for_avx2([])
    best.append(operations())
    codes.append([code_here(kernel_name(*pair)) for pair in pairs])
    lines = [
        f"Measured on {cpu()}, {oracle.stamp()}; millions of weights a second. Vector operations a "
        f"second of one thread, in thousands of millions: {best[0]:.1f} of {width} float32 "
        f"({here}), {best[1]:.1f} of {vector_width()} ({NARROW}: AVX2).",
        "",
        f"| format | ggml | {widest} | times ggml | instructions a weight | share of the roofline "
        "| AVX2 | times ggml | instructions a weight | share of the roofline |",
        "|---|---|" + "---|" * 8,
    ]
    print("\n".join(lines), flush=True)
    for (fmt, weighted), wide, narrow in zip(pairs, *codes, strict=True):
        lines.append(row(fmt, weighted, [wide, narrow], best))
        print(lines[-1], flush=True)
    if options.write:
        write_section(options.write, "roofline", "\n".join(lines))


if __name__ == "__main__":
    main()
