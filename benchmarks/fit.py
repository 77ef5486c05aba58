"""What `fit` and `--recipe moe` gain over llama.cpp's types at their sizes, in KL divergence:
`python -m benchmarks.fit SOURCE WORK_DIR TEXT... [--imatrix FILE] [--write docs/fit.md]`.

Every file is run by llama.cpp against the F32 file, over all the texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measure import write_section
from quantkit.calibration.imatrix import read_imatrix
from quantkit.fitting.fit import Budget, fit, make
from quantkit.jobs import Run, quantize
from quantkit.verification.divergence import divergences, mean

TYPES = ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"]
HEAD = (
    "| type | bytes | llama.cpp's | `--recipe moe` | `fit` | `fit`, K-quants |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def main() -> None:
    """Make the files, measure them, print the table; with --write, put it into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    work, run = options.work, Run(force=True)
    work.mkdir(parents=True, exist_ok=True)
    base = work / "base.gguf"
    quantize(options.source, ["F32"], base, run=run)
    rows = []
    for imatrix in (None, *([read_imatrix(options.imatrix)] if options.imatrix else [])):
        for kind in TYPES:
            label = f"{kind}, imatrix" if imatrix else kind
            paths = {n: work / f"{kind}-{n}.gguf" for n in ("type", "moe", "fit", "fit-k")}
            quantize(options.source, [kind], paths["type"], imatrix=imatrix, run=run)
            quantize(options.source, [f"{kind}-moe"], paths["moe"], imatrix=imatrix, run=run)
            budget = Budget(size=paths["type"].stat().st_size)
            for name, formats in (("fit", None), ("fit-k", K_QUANTS)):
                given = {} if formats is None else {"formats": formats}
                found = fit(options.source, budget, imatrix=imatrix, **given)
                make(options.source, found, paths[name], imatrix=imatrix, run=run)
            found = divergences([*paths.values()], base, options.texts, threads=options.threads)
            kl = [mean(f).kl for f in found]
            sizes = [path.stat().st_size for path in paths.values()]
            assert max(sizes) == sizes[0]
            cells = [f"{kl[0]:.5f}"]
            cells += [f"{k:.5f} ({100 * (k / kl[0] - 1):+.0f}%)" for k in kl[1:]]
            rows.append(f"| {label} | {sizes[0]:,} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    if options.write:
        write_section(options.write, "fit", HEAD + "\n".join(rows))


if __name__ == "__main__":
    main()
