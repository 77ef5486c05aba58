"""Kernels for AVX-512 and for AVX2 alone, side by side against ggml and against what the processor
does at best with their instructions: `python -m benchmarks.roofline [--write docs/benchmarks.md]`.

ggml, both kernels and their rooflines take turns; a figure is the best of short runs by the
thread's own time, so that a busy machine counts little. Instructions are counted one by one
(`benchmarks.instructions`). The share of the roofline is the time that a kernel's instructions take
when none waits for another (`benchmarks.replay`), in the time that the kernel takes. Loops of
independent operations show what that is worth. objdump and nm (binutils) have to be there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import quant_types
from benchmarks import throughput
from benchmarks.formats import code_here, compile_for_avx2, cpu
from benchmarks.instructions import BLOCKS, disassembled, ran, trace
from benchmarks.measure import write_section
from benchmarks.replay import Replay, replay
from quant_types import BlockFormat, kernels
from quant_types.engines import kernel_name
from tests import oracle

ROWS, N = 32, 4096
RUNS, AGAIN = 25, 4  # turns, and runs of each in one: caches are as it left them
COUNTED = BLOCKS * 256  # weights
FEW = 100  # passes of a loop of independent operations, of which instructions are counted
NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def least(calls: list[Callable[[], object]]) -> list[float]:
    """Seconds of the thread that each call takes at best, in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(RUNS):
        for i, call in enumerate(calls):
            for _ in range(AGAIN):
                begin = time.thread_time()
                call()
                best[i] = min(best[i], time.thread_time() - begin)
    return best


def bound(roofline: Replay, alone: list[float]) -> float:
    """Seconds that all loops take, by what a call of each took."""
    return sum(seconds * n for seconds, n in zip(alone, roofline.times, strict=True))


def row(fmt: BlockFormat, weighted: bool, ours: list[tuple[bytes, Replay]]) -> str:
    """A line of the table. `ours`: the kernels for this processor, and for AVX2."""
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

    calls: list[Callable[[], object]] = [lambda: oracle.quantize(x, fmt.name, importance)]
    for code, roofline in ours:
        calls += [lanes(code), *roofline.calls]
    ggml, *rest = least(calls)
    cells = [f"{x.size / ggml / 1e6:.1f}"]
    for _, roofline in ours:
        taken, *alone = rest[: 1 + len(roofline.calls)]
        rest = rest[1 + len(roofline.calls) :]
        cells += [
            f"{x.size / taken / 1e6:.0f}",
            f"{ggml / taken:.1f}",
            f"{roofline.ran / COUNTED:.1f}",
            f"{bound(roofline, alone) / COUNTED * x.size / taken:.2f}",
        ]
    label = fmt.name + (", importance" if weighted else "")
    return f"| {label} | " + " | ".join(cells) + " |"


def proof(does: tuple[str, ...]) -> str:
    """The share that a loop of independent operations has, which should be 1."""
    kernel, arguments = throughput.calls(does)
    text = disassembled(throughput.code(does))
    roofline = replay(text, trace(kernel, arguments(FEW), text))
    taken, *alone = least([lambda: kernel(*arguments(throughput.PASSES)), *roofline.calls])
    return f"{bound(roofline, alone) / FEW * throughput.PASSES / taken:.2f}"


def compiled(pairs: list[tuple[BlockFormat, bool]]) -> tuple[str, list[tuple[bytes, Replay]]]:
    """What the processor that is compiled for does at best; its kernels, with what they run."""
    codes = [code_here(kernel_name(*pair)) for pair in pairs]
    said = (
        f"{throughput.operations():.1f} of {throughput.vector_width()} float32 "
        f"({kernels.target()[0]}; a loop of independent sums and products has a share of "
        f"{proof(throughput.SUMS)}, one of divisions {proof(('fdiv',))})"
    )
    return said, [
        (code, replay(*ran(*pair, code))) for pair, code in zip(pairs, codes, strict=True)
    ]


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
    width = throughput.vector_width()
    widest = {16: "AVX-512", 8: "AVX2"}.get(width, kernels.target()[0])
    here, wide = compiled(pairs)
    compile_for_avx2([])
    avx2, narrow = compiled(pairs)
    lines = [
        f"Measured on {cpu()}, {oracle.stamp()}; millions of weights a second. Vector operations a "
        f"second of one thread, in thousands of millions: {here}, {avx2}.",
        "",
        f"| format | ggml | {widest} | times ggml | instructions a weight | share of the roofline "
        "| AVX2 | times ggml | instructions a weight | share of the roofline |",
        "|---|---|" + "---|" * 8,
    ]
    print("\n".join(lines), flush=True)
    for pair, *ours in zip(pairs, wide, narrow, strict=True):
        lines.append(row(*pair, ours))
        print(lines[-1], flush=True)
    if options.write:
        write_section(options.write, "roofline", "\n".join(lines))


if __name__ == "__main__":
    main()
