"""The 24 files of an imatrix set from one read:
`python -m benchmarks.imatrix_set CHECKPOINT IMATRIX WORK_DIR [--threads 2] [--write PAGE]`.

CPU time of the whole `quantkit release --types i1` is held against that of `ggml_quantize_chunk`
with importances for the same weights in the same formats: a machine that does other things as well
changes it less than time by the clock. All files are loaded by llama.cpp, and deleted.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.measure import FLOATS, WIDTH, peak, write_section
from quantkit.calibration.imatrix import read_imatrix
from quantkit.jobs import Run, quantize
from quantkit.llama.llama_cpp import Llama
from quantkit.recipes.file_types import SETS
from tests import oracle

ROWS = 32  # of WIDTH weights, that ggml's rates are taken from


def ggml_cpu(checkpoint: Path, imatrix: Path, work: Path) -> float:
    """CPU seconds that ggml's kernels take for the set."""
    matrix = read_imatrix(imatrix)
    plan = quantize(checkpoint, SETS["i1"], work, imatrix=matrix, run=Run(dry=True))
    held: Counter[str] = Counter()
    for output in plan.outputs:
        for t in output.by_name.values():
            held[t.format] += t.weights
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, WIDTH), np.float32) * np.float32(0.02)
    importance = rng.lognormal(size=WIDTH).astype(np.float32)
    total = 0.0
    for fmt, weights in held.items():
        if fmt not in FLOATS:
            oracle.quantize(x[:1], fmt, importance)  # its tables
            taken = []
            for _ in range(3):
                start = time.process_time()
                oracle.quantize(x, fmt, importance)
                taken.append(time.process_time() - start)
            total += min(taken) / x.size * weights
    return total


def main() -> None:
    """Make the set, load it, measure ggml; print what was found, with --write into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("imatrix", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    out = options.work / "set"
    shutil.rmtree(out, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    arguments = ["release", str(options.checkpoint.absolute()), "-o", str(out.absolute())]
    arguments += ["--types", "i1", "--imatrix", str(options.imatrix.absolute())]
    ours = peak([*arguments, "--threads", str(options.threads)], out)
    seconds, cpu, anon, rss = (ours[figure] for figure in ("seconds", "cpu", "anon", "rss"))
    files = [f for f in sorted(out.glob("*.gguf")) if not f.name.endswith(".imatrix.gguf")]
    for file in files:
        with Llama(file, 64, 1, 1):
            pass
    nbytes = sum(f.stat().st_size for f in files)
    shutil.rmtree(out)
    theirs = ggml_cpu(options.checkpoint, options.imatrix, options.work)
    weights = (options.checkpoint / "model.safetensors").stat().st_size // 2
    text = (
        f"`--types i1` of {weights / 1e9:.2f} billion weights: {len(files)} files, "
        f"{nbytes / 1e9:.2f} GB, all of which llama.cpp loads. The whole release took "
        f"{seconds:.0f} s with {options.threads} threads; its CPU time was {cpu:.0f} s, that of "
        f"ggml's kernels for the same formats {theirs:.0f} s, {theirs / cpu:.1f} times ours. Peak "
        f"memory {anon:.0f} MB anonymous, {rss:.0f} MB with the pages of files."
    )
    print(text)
    if options.write:
        write_section(options.write, "imatrix-set", text)


if __name__ == "__main__":
    main()
