"""Whole jobs on a checkpoint of real widths, against ggml on the same cores and `cp` on the same
disk: `python -m benchmarks.pipeline CHECKPOINT WORK_DIR [--write docs/benchmarks.md]`.

ggml's time for a file is counted, not run: llama-quantize spreads `ggml_quantize_chunk` over its
threads, so it takes at least the weights of each format over that format's rate (one thread,
measured here, in this run), divided by the threads.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.convert import Run, quantize
from quantkit.plan import Plan
from tests import oracle

EIGHT = ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0"]
MARKS = ("<!-- pipeline:begin -->", "<!-- pipeline:end -->")


def ggml_seconds(plan: Plan, threads: int) -> float:
    """The least that llama-quantize takes for the plan's outputs, by ggml's rates."""
    held: Counter[str] = Counter()
    for output in plan.outputs:
        for t in output.by_name.values():
            held[t.format] += t.weights
    x = (np.random.default_rng(0).standard_normal((64, 4096)) * 0.02).astype(np.float32)
    seconds = 0.0
    for fmt, weights in held.items():
        if fmt in ("F32", "F16", "BF16"):
            continue
        times = []
        for _ in range(5):
            start = time.perf_counter()
            oracle.quantize(x, fmt)
            times.append(time.perf_counter() - start)
        seconds += weights * statistics.median(times) / x.size
    return seconds / threads


def watch(process: subprocess.Popen[str]) -> dict[str, float]:
    """Follow a process to its end: peak anonymous and whole resident memory (MB), CPU seconds."""
    peak = {"anon": 0.0, "rss": 0.0}

    def look() -> None:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except (OSError, ValueError):
                return
            for key, name in (("anon", "RssAnon"), ("rss", "VmRSS")):
                if name in lines:
                    peak[key] = max(peak[key], int(lines[name].split()[0]) / 1000)
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    process.wait()
    watcher.join()
    return peak


def run(arguments: list[str], directory: Path) -> dict[str, Any]:
    """One `quantkit` command in a process of its own: seconds, CPU use, peak memory."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [sys.executable, "-m", "quantkit.cli", *arguments, "--json"]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True)
    peak = watch(process)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert process.returncode == 0
    assert process.stdout is not None
    inner = json.loads(process.stdout.read())["seconds"]
    return {"seconds": seconds, "inner": inner, "cpu": cpu, **peak}


def main() -> None:
    """Measure and print; with --write, put the table into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    work, source = options.work.resolve(), options.checkpoint.resolve()
    work.mkdir(parents=True, exist_ok=True)
    name, threads = source.name, str(options.threads)
    rows = []

    def measure(label: str, arguments: list[str], against: float, what: str) -> None:
        found = []
        for _ in range(options.repeat):
            found.append(run([*arguments, "--force", "--threads", threads], work))
        m = {k: statistics.median(f[k] for f in found) for k in found[0]}
        rows.append(
            f"| {label} | {m['inner']:.2f} s | {100 * m['cpu'] / m['seconds']:.0f}% | "
            f"{m['anon']:.0f} MB | {m['rss']:.0f} MB | {against:.2f} s {what} | "
            f"{against / m['inner']:.1f} |"
        )
        print(rows[-1], flush=True)

    def planned(path: Path, types: list[str]) -> Plan:
        return quantize(path, types, work, run=Run(dry=True))

    copies = []
    for _ in range(options.repeat):
        (work / "copy").unlink(missing_ok=True)
        start = time.perf_counter()
        subprocess.run(["cp", source / "model.safetensors", work / "copy"], check=True)
        subprocess.run(["sync", work / "copy"], check=True)  # as our files are
        copies.append(time.perf_counter() - start)
    (work / "copy").unlink()
    measure(
        "convert, bf16 to bf16", ["convert", str(source)], statistics.median(copies), "`cp`, synced"
    )
    gguf = work / f"{name}-BF16.gguf"
    one = ggml_seconds(planned(gguf, ["Q4_K_M"]), options.threads)
    measure("Q4_K_M from the bf16 GGUF", ["quantize", str(gguf), "-t", "Q4_K_M"], one, "ggml")
    measure("Q4_K_M from the checkpoint", ["quantize", str(source), "-t", "Q4_K_M"], one, "ggml")
    eight = ggml_seconds(planned(source, EIGHT), options.threads)
    types = [a for t in EIGHT for a in ("-t", t)]
    measure("eight types in one read", ["quantize", str(source), *types], eight, "ggml")

    weights = sum(t.weights for t in planned(source, ["F32"]).outputs[0].by_name.values())
    head = (
        f"{weights / 1e9:.2f} billion weights, {threads} threads, median of {options.repeat} runs. "
        "The last column is how many times faster than the comparison.\n\n"
        "| job | time | CPU | peak anonymous memory | peak resident memory | comparison | ratio |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    text = head + "\n".join(rows) + "\n"
    if options.write:
        document = options.write.read_text()
        before, _, rest = document.partition(MARKS[0])
        options.write.write_text(
            f"{before}{MARKS[0]}\n{text}{MARKS[1]}{rest.partition(MARKS[1])[2]}"
        )
    shutil.rmtree(work / "copy", ignore_errors=True)


if __name__ == "__main__":
    main()
