"""Whole jobs on a checkpoint of real widths, against ggml on the same cores, the kernels alone, and
`cp` on the same disk: `python -m benchmarks.pipeline CHECKPOINT WORK_DIR [--write PAGE]`.

ggml's time for a file is counted, not run: llama-quantize spreads `ggml_quantize_chunk` over its
threads, so it takes at least what its rates say (`measure.ggml_seconds`).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.measure import (
    cores_at_work,
    ggml_seconds,
    kernel_seconds,
    median,
    peak,
    run,
    write_section,
)  # fmt: skip
from quantkit.jobs import Run, convert, quantize
from quantkit.planning.plan import Plan

EIGHT = ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0"]


def main() -> None:
    """Measure and print; with --write, put the table into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    work, source = options.work.resolve(), options.checkpoint.resolve()
    (work / "out").mkdir(parents=True, exist_ok=True)
    threads: int = options.threads
    gguf = work / f"{source.name}-BF16.gguf"
    if not gguf.exists():
        convert(source, gguf, "bf16")

    def copy() -> float:
        target = work / "copy"
        target.unlink(missing_ok=True)
        start = time.perf_counter()
        subprocess.run(["cp", source / "model.safetensors", target], check=True)
        subprocess.run(["sync", target], check=True)  # as our files are
        taken = time.perf_counter() - start
        target.unlink()
        return taken

    def planned(types: list[str]) -> Plan:
        return quantize(source, types, work / "out", run=Run(dry=True))

    one, eight = planned(["Q4_K_M"]), planned(EIGHT)
    jobs: list[tuple[str, Path, list[str], Plan | None]] = [
        ("convert, bf16 to bf16", source, [], None),
        ("Q4_K_M from the bf16 GGUF", gguf, ["Q4_K_M"], one),
        ("Q4_K_M from the checkpoint", source, ["Q4_K_M"], one),
        ("eight types in one read", source, EIGHT, eight),
    ]
    heads = [
        "job",
        "time",
        "CPU",
        "from first chunk to last",
        "peak anonymous",
        "peak resident",
        "llama-quantize's kernels",
        "our kernels alone",
    ]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for label, read, types, plan in jobs:
        arguments = ["quantize" if types else "convert", str(read), "--threads", str(threads)]
        arguments += [a for t in types for a in ("-t", t)]
        found, copies, ggml, kernels, cores = [], [], [], [], []
        for _ in range(options.repeat):  # side by side: what is compared is measured in turn
            found.append(run(arguments, work / "out"))
            cores.append(cores_at_work(read, types, threads, work / "out"))
            if plan is None:
                copies.append(copy())
            else:
                ggml.append(ggml_seconds(plan, threads))
                kernels.append(kernel_seconds(plan, threads))
        m = peak(arguments, work / "out") | median(found)
        cells = [label, f"{m['seconds']:.2f} s", f"{100 * m['cpu'] / m['seconds']:.0f}%"]
        cells += [f"{100 * statistics.median(cores):.0f}%"]
        cells += [f"{m['anon']:.0f} MB", f"{m['rss']:.0f} MB"]
        if plan is None:
            t = statistics.median(copies)
            cells += [f"(`cp` and sync: {t:.2f} s, we take {m['seconds'] / t:.2f} of it)", ""]
        else:
            g, k = statistics.median(ggml), statistics.median(kernels)
            cells += [f"{g:.1f} s, {g / m['seconds']:.1f} times ours"]
            cells += [f"{k:.2f} s, we take {m['seconds'] / k:.2f} of it"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    weights = sum(t.weights for t in one.outputs[0].by_name.values())
    head = (
        f"{weights / 1e9:.2f} billion weights, {threads} threads, medians of {options.repeat} "
        "runs; a time is the whole command's, Python's start included.\n\n"
    )
    if options.write:
        write_section(options.write, "pipeline", head + "\n".join(lines))


if __name__ == "__main__":
    main()
