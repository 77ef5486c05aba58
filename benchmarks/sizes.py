"""Size against KL divergence: `fit` with an importance matrix, and all of llama.cpp's types, with
the matrix and without: `python -m benchmarks.sizes SOURCE WORK_DIR TEXT... --imatrix FILE
[--recorded JSON] [--write docs/fit.md --picture docs/fit.svg]`.

Every file is run by llama.cpp against the F32 file, over all the texts. What is measured is kept in
WORK_DIR, so that the same command goes on where it was stopped. `--recorded` has llama.cpp's own
measurements of its types (`tests/data/frankenmoe-4x.golden.json`), which are taken as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import write_section
from quantkit.calibration.imatrix import Imatrix, read_imatrix
from quantkit.charts.plots import Point, scatter
from quantkit.charts.svg import Axis
from quantkit.errors import BudgetError
from quantkit.fitting.fit import Budget, fit, make
from quantkit.jobs import Run, quantize
from quantkit.recipes.file_types import SETS
from quantkit.verification.divergence import divergences, mean

STEP = 250_000  # bytes between the sizes that no type has
AT_ONCE = 6  # models in memory
LEFT_OUT = ("COPY", "F32", "F16", "BF16", "TQ1_0", "TQ2_0")  # and ternary ones, which it is not
RUN = Run(force=True)
PLAIN, WITH, FIT = "llama.cpp", "llama.cpp, matrix", "fit"  # also the series of the picture

Found = dict[str, tuple[int, float]]  # "series label" -> bytes, divergence


def recorded(path: Path) -> Found:
    """llama.cpp's measurements of its own files."""
    goldens = json.loads(path.read_text())
    return {
        f"{series} {kind}": (entry["file_size"], sum(kl.values()) / len(kl))
        for series, part in ((PLAIN, "quantize"), (WITH, "quantize_imatrix"))
        for kind, entry in goldens[part].items()
        if (kl := entry.get("kl_divergence")) and kind not in LEFT_OUT
    }


def types(source: Path, work: Path, matrix: Imatrix) -> dict[str, Callable[[], Path]]:
    """How each of llama.cpp's types is made."""

    def of(kind: str, series: str) -> Path:
        path = work / f"{series[-6:]}-{kind}.gguf"
        given = matrix if series == WITH else None
        return quantize(source, [kind], path, imatrix=given, run=RUN).files[0].path

    kinds = [(kind, WITH) for kind in (*SETS["i1"], "Q5_0", "Q5_1", "Q8_0")]
    kinds += [(kind, PLAIN) for kind in (*SETS["static"], "IQ3_S", "IQ3_M", "IQ4_NL", "Q4_0",
                                         "Q4_1", "Q5_0", "Q5_1")]  # fmt: skip
    return {f"{series} {kind}": partial(of, kind, series) for kind, series in kinds}


def fits(
    source: Path, work: Path, matrix: Imatrix, sizes: list[int]
) -> dict[str, Callable[[], Path]]:
    """How the file of each size is made; none where a size leaves nothing to choose."""

    def of(size: int) -> Path:
        found = fit(source, Budget(size=size), imatrix=matrix)
        return make(source, found, work / f"fit-{size}.gguf", imatrix=matrix, run=RUN).files[0].path

    return {f"{FIT} {size}": partial(of, size) for size in sizes}


def measured(
    files: dict[str, Callable[[], Path]], base: Path, texts: list[Path], store: Path
) -> Found:
    """Bytes and divergence of each file; those in the store are not measured again."""
    known: Found = {k: (n, kl) for k, (n, kl) in json.loads(store.read_text()).items()}
    todo = [label for label in files if label not in known]
    for start in range(0, len(todo), AT_ONCE):
        paths = {}
        for label in todo[start : start + AT_ONCE]:
            try:
                paths[label] = files[label]()
            except BudgetError:
                known[label] = (0, 0.0)
        rows = divergences([*paths.values()], base, texts, threads=1)
        for (label, path), row in zip(paths.items(), rows, strict=True):
            known[label] = (path.stat().st_size, mean(row).kl)
            print(label, *known[label], flush=True)
            path.unlink()
        store.write_text(json.dumps(known, indent=1))
    return {label: known[label] for label in files if known[label][0]}


def table(theirs: Found, ours: Found) -> str:
    """For each size: the best of llama.cpp's files that are no larger, and `fit`."""
    lines = [
        "| at most | best of llama.cpp's types | its divergence | `fit` | |",
        "| --- " * 5 + "|",
    ]
    for label, (_, kl) in ours.items():
        size = int(label.split()[-1])
        best = min((e for e in theirs.items() if e[1][0] <= size), key=lambda e: e[1][1])
        name = best[0].removeprefix(f"{WITH} ").removeprefix(f"{PLAIN} ")
        name += ", matrix" if best[0].startswith(WITH) else ""
        change = 100 * (kl / best[1][1] - 1)
        lines.append(f"| {size:,} | {name} | {best[1][1]:.5f} | {kl:.5f} | {change:+.0f}% |")
    return "\n".join(lines)


def picture(theirs: Found, ours: Found) -> str:
    """All of them, as SVG."""
    points = [
        Point(label.split()[-1], size, kl, label.rsplit(" ", 1)[0])
        for label, (size, kl) in theirs.items()
        if kl < 0.2
    ]
    points += [Point("", size, kl, FIT) for size, kl in ours.values()]
    megabytes = Axis("size", lambda n: f"{n / 1e6:.1f} MB")
    return scatter(
        "Size and KL divergence", points, megabytes, Axis("KL", "{:.2g}".format, log=True)
    )


def main() -> None:
    """Measure what is not measured yet, print the table; with --write, put it into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--recorded", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    work, matrix = options.work, read_imatrix(options.imatrix)
    work.mkdir(parents=True, exist_ok=True)
    base, store = work / "base.gguf", work / "measured.json"
    if not store.exists():
        quantize(options.source, ["F32"], base, run=RUN)
        store.write_text("{}")
    if options.recorded:
        theirs = recorded(options.recorded)
    else:
        theirs = measured(types(options.source, work, matrix), base, options.texts, store)
    own = {size for label, (size, _) in theirs.items() if label.startswith(WITH)}
    sizes = sorted(own | set(range(min(own) // STEP * STEP + STEP, max(own), STEP)))
    ours = measured(fits(options.source, work, matrix, sizes), base, options.texts, store)
    for label, (size, kl) in ours.items():
        assert not [t for t, (n, k) in theirs.items() if n < size and k < kl], label
    text = table(theirs, ours)
    print(text)
    if options.write:
        write_section(options.write, "sizes", text)
    if options.picture:
        options.picture.write_text(picture(theirs, ours))


if __name__ == "__main__":
    main()
