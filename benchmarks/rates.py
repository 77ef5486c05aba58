"""How the time of a run grows with the model, the threads and the number of outputs:
`python -m benchmarks.rates WORK_DIR [--write PAGE]`.

Checkpoints of 1, 2 and 4 layers are made in WORK_DIR if they are not there (13 GB), and a small
one, of which the time is what every run takes whatever its size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import make_checkpoint
from benchmarks.measure import median, peak, run, write_section
from benchmarks.pipeline import EIGHT
from quantkit.jobs import Run, quantize

LAYERS = (1, 2, 4)


def main() -> None:
    """Measure and print; with --write, put the tables into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    lines: list[str] = []

    def say(*cells: str) -> None:
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)

    def measured(source: Path, types: list[str], threads: int) -> dict[str, float]:
        arguments = ["quantize", str(source), *(a for t in types for a in ("-t", t))]
        arguments += ["--threads", str(threads)]
        timed = median([run(arguments, work / "out") for _ in range(options.repeat)])
        return peak(arguments, work / "out") | timed

    (work / "out").mkdir(parents=True, exist_ok=True)
    sources = {n: work / f"layers-{n}" for n in LAYERS}
    for n, source in sources.items():
        if not (source / "model.safetensors").exists():
            make_checkpoint.write(source, n)
    say("layers", "weights", "Q4_K_M", "CPU", "millions of weights a second", "peak resident")
    say(*["---"] * 6)
    small = work / "small"
    if not small.exists():
        subprocess.run([sys.executable, "examples/demo_checkpoint.py", str(small)], check=True)
    for label, source in (("(small)", small), *((str(n), sources[n]) for n in LAYERS)):
        plan = quantize(source, ["Q4_K_M"], work / "out", run=Run(dry=True))
        weights = sum(t.weights for t in plan.outputs[0].by_name.values())
        m = measured(source, ["Q4_K_M"], options.threads)
        if source is small:
            constant = m["seconds"]
        rate = weights / (m["seconds"] - constant) if source is not small else 0.0
        say(
            label,
            f"{weights / 1e9:.2f} billion",
            f"{m['seconds']:.2f} s",
            f"{100 * m['cpu'] / m['seconds']:.0f}%",
            f"{rate / 1e6:.0f}" if rate else "-",
            f"{m['rss']:.0f} MB",
        )
    lines.append(
        f"\nThe rate is that of what goes beyond the {constant:.2f} s that every run takes: "
        "Python, imports, and kernels from their cache.\n"
    )
    print(lines[-1])
    say("threads", "Q4_K_M, 1 layer", "CPU")
    say(*["---"] * 3)
    for threads in range(1, options.threads + 1):
        m = measured(sources[1], ["Q4_K_M"], threads)
        say(str(threads), f"{m['seconds']:.2f} s", f"{100 * m['cpu'] / m['seconds']:.0f}%")
    lines.append("")
    say("outputs", "1 layer", "CPU", "peak resident", "types")
    say(*["---"] * 5)
    for count in (1, 2, 4, 8):
        m = measured(sources[1], EIGHT[:count], options.threads)
        say(
            str(count),
            f"{m['seconds']:.2f} s",
            f"{100 * m['cpu'] / m['seconds']:.0f}%",
            f"{m['rss']:.0f} MB",
            ", ".join(EIGHT[:count]),
        )
    if options.write:
        write_section(options.write, "rates", "\n".join(lines))


if __name__ == "__main__":
    main()
