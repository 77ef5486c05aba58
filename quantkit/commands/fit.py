"""The command that chooses the best mixture within a budget: fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands.console import Progress
from quantkit.commands.options import (
    ExpertsUsed,
    Force,
    Json,
    KeepExperts,
    Mtp,
    NoMtp,
    Pre,
    Threads,
    imatrix_of,
    reading_of,
    run_of,
)

if TYPE_CHECKING:
    from quantkit.fitting.fit import Budget, Fit


def fit(
    source: Annotated[str, typer.Argument(help="A checkpoint directory, a GGUF file, or hf://...")],
    size: Annotated[str | None, typer.Option("--size", help="The file's size: 12GB.")] = None,
    ram: Annotated[str | None, typer.Option("--ram", help="Memory to run it in: 16GB.")] = None,
    bpw: Annotated[float | None, typer.Option("--bpw", help="Bits per weight: 4.5.")] = None,
    context: Annotated[
        int | None, typer.Option("--ctx", min=1, help="Tokens of context for --ram.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Make the file, too (or in a directory).")
    ] = None,
    recipe_file: Annotated[
        Path | None, typer.Option(help="Where the recipe goes (default: NAME-fit.txt, here).")
    ] = None,
    formats: Annotated[
        str | None, typer.Option("--formats", help="Choose from these, such as Q3_K,Q4_K,Q6_K.")
    ] = None,
    imatrix: Annotated[
        str | None, typer.Option("--imatrix", help="An importance matrix (GGUF or .dat).")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw size against error, as an SVG file.")
    ] = None,
    pre: Pre = None,
    experts_used: ExpertsUsed = None,
    keep_experts: KeepExperts = None,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Choose the format of every tensor: the least error in a file of a size."""
    from quantkit.errors import OutputExists
    from quantkit.fitting import fit as jobs

    budget = _budget(size, ram, bpw, context)
    reading = reading_of(pre, experts_used, keep_experts, mtp, no_mtp, False, False, False)
    matrix = imatrix_of(imatrix, [], [])
    with Progress() as progress:
        found = jobs.fit(
            source, budget, formats.split(",") if formats else jobs.FORMATS, imatrix=matrix,
            reading=reading, threads=threads, progress=progress.bar("measuring"),
        )  # fmt: skip
    recipe_file = recipe_file or Path(f"{found.name}-fit.txt")
    texts = {recipe_file: found.recipe()} | ({picture: jobs.picture(found)} if picture else {})
    for path in texts:
        if path.exists() and not force:
            raise OutputExists(f"{path} exists; give --force to overwrite it")
    files = []
    if output is not None:
        with Progress() as making:
            made = jobs.make(
                source, found, output, imatrix=matrix, reading=reading,
                run=run_of(force, False, threads, None, making),
            )  # fmt: skip
        files = [f.path for f in made.files]
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(_json(found, recipe_file, files, progress.seconds), indent=2))
    else:
        typer.echo("\n".join(_lines(found, recipe_file, files)))


def _budget(size: str | None, ram: str | None, bpw: float | None, context: int | None) -> Budget:
    from quantkit.fitting.fit import Budget
    from quantkit.gguf.splits import parse_size

    if sum(given is not None for given in (size, ram, bpw)) != 1:
        raise typer.BadParameter("give one of --size 12GB, --ram 16GB and --bpw 4.5")
    return Budget(
        parse_size(size) if size is not None else None,
        parse_size(ram) if ram is not None else None, bpw, context,
    )  # fmt: skip


def _lines(found: Fit, recipe: Path, files: list[Path]) -> list[str]:
    """The frontier at the sizes of llama.cpp's types, and what was chosen."""
    from quantkit.recipes.sensitivity import use_case
    from quantkit.reporting.numbers import gigabytes

    lines = [f"{'size':>10} {'bpw':>6} {'error':>8}   llama.cpp's"]
    for mark in sorted((*found.types, found.chosen), key=lambda m: (m.nbytes, m.label)):
        best, note = found.best.get(mark.label, mark), f"{mark.label} {_percent(mark.error)}"
        if not mark.label:
            note = f"<- chosen: {use_case(mark.error)}"
        size = f"{gigabytes(mark.nbytes):>10} {mark.bits_per_weight:6.2f}"
        lines.append(f"{size} {_percent(best.error):>8}   {note}")
    lines.append(f"{recipe}: {len(found.formats)} tensors, for --tensor-type-file with "
                 f"--type {found.base}")  # fmt: skip
    return [*lines, *map(str, files)]


def _percent(error: float) -> str:
    return f"{100 * error:.2g}%" if error < 0.1 else f"{100 * error:.0f}%"


def _json(found: Fit, recipe: Path, files: list[Path], seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    from quantkit.recipes.sensitivity import use_case

    return {
        "chosen": asdict(found.chosen) | {"use_case": use_case(found.chosen.error)},
        "base": found.base, "recipe_file": str(recipe), "files": list(map(str, files)),
        "formats": dict(found.formats), "errors": {n: dict(e) for n, e in found.errors.items()},
        "types": [asdict(m) | {"best": asdict(found.best[m.label])} for m in found.types],
        "frontier": [asdict(m) for m in found.frontier], "seconds": round(seconds, 3),
    }  # fmt: skip
