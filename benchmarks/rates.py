"""How the time of a run grows with the model, the threads and the number of outputs:
`python -m benchmarks.rates WORK_DIR [--write PAGE]`.

Checkpoints of 1, 2 and 4 layers are made in WORK_DIR if they are not there (13 GB). What grows with
the weights, and what every run takes whatever its size, is the line of least squares through the
three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks import make_checkpoint
from benchmarks.measure import median, run, write_section
from benchmarks.pipeline import EIGHT
from quantkit.convert import Run, quantize

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
        return median([run(arguments, work / "out") for _ in range(options.repeat)])

    (work / "out").mkdir(parents=True, exist_ok=True)
    sources = {n: work / f"layers-{n}" for n in LAYERS}
    for n, source in sources.items():
        if not (source / "model.safetensors").exists():
            make_checkpoint.write(source, n)
    say("layers", "weights", "Q4_K_M", "CPU", "millions of weights a second", "peak resident")
    say(*["---"] * 6)
    sizes, taken = [], []
    for source in sources.values():
        plan = quantize(source, ["Q4_K_M"], work / "out", run=Run(dry=True))
        weights = sum(t.weights for t in plan.outputs[0].by_name.values())
        m = measured(source, ["Q4_K_M"], options.threads)
        sizes.append(weights), taken.append(m["seconds"])
        say(
            str(LAYERS[len(sizes) - 1]), f"{weights / 1e9:.2f} billion", f"{m['seconds']:.2f} s",
            f"{100 * m['cpu'] / m['seconds']:.0f}%", f"{weights / m['seconds'] / 1e6:.0f}",
            f"{m['rss']:.0f} MB",
        )  # fmt: skip
    slope, constant = np.polyfit(sizes, taken, 1)
    lines.append(
        f"\nSeconds = {constant:.2f} + weights / {1e-6 / slope:.0f} million, to within "
        f"{max(abs(np.polyval((slope, constant), sizes) - taken)):.2f} s.\n"
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
            str(count), f"{m['seconds']:.2f} s", f"{100 * m['cpu'] / m['seconds']:.0f}%",
            f"{m['rss']:.0f} MB", ", ".join(EIGHT[:count]),
        )  # fmt: skip
    if options.write:
        write_section(options.write, "rates", "\n".join(lines))


if __name__ == "__main__":
    main()
