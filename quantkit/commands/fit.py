"""The command that chooses the best mixture within a budget: fit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options, values
from quantkit.commands.console import TerminalProgress, print_json, say
from quantkit.plain_text import one_line

if TYPE_CHECKING:
    from quantkit.fitting.fit import Fit, Mark
    from quantkit.model.open import Reading


@options.takes(reading=options.reading, progress=options.watching)
def fit(
    source: options.SourceArgument,
    size: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="The file's size: 12GB.")
    ] = None,
    ram: options.Ram = None,
    bpw: Annotated[
        float | None, typer.Option("--bpw", metavar="BITS", help="Bits per weight: 4.5.")
    ] = None,
    context: options.Context = None,
    output: Annotated[
        Path | None,
        options.output_option("PATH", "Make the file, too: a .gguf file, or a directory."),
    ] = None,
    recipe_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="Where the recipe goes (default: NAME-fit.txt, here).",
        ),
    ] = None,
    formats: Annotated[
        list[str],
        typer.Option(
            "--formats",
            metavar="LIST",
            rich_help_panel=options.TYPES,
            help="Choose from these, such as Q3_K,Q4_K,Q6_K.",
        ),
    ] = [],  # noqa: B006
    imatrix: options.ImatrixFile = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="Draw size against error, as an SVG file.",
        ),
    ] = None,
    *,
    reading: Reading,
    progress: TerminalProgress,
    threads: options.Threads = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Choose the format of every tensor: the least error in a file of a size."""
    from quantkit import api
    from quantkit.errors import OutputError, OutputExists, UsageError
    from quantkit.execution.outputs import is_whole
    from quantkit.fitting.fit import make
    from quantkit.fitting.fit import picture as drawn
    from quantkit.gguf.splits import is_gguf
    from quantkit.jobs import Run
    from quantkit.storage.whole import check_text_place, write_text

    if picture and picture == recipe_file:
        raise UsageError(f"--recipe-file and --picture are both {picture}; name two files")
    for path in filter(None, (recipe_file, picture)):
        check_text_place(path, force)

    def ready(name: str) -> None:
        check_text_place(recipe_file or Path(f"{name}-fit.txt"), force)
        if output is not None and is_gguf(output) and not force and is_whole(output):
            raise OutputExists(f"{output} exists already; --force overwrites it")

    matrix = values.read_imatrix(imatrix)
    with progress:
        fit = api.fit(
            source,
            size=values.size("--size", size),
            ram=values.size("--ram", ram),
            bits_per_weight=bpw,
            context=context,
            formats=values.names(formats) or None,
            imatrix=matrix,
            reading=reading,
            threads=threads,
            progress=progress,
            ready=ready,
        )
    seconds = progress.seconds
    recipe_file = recipe_file or Path(f"{fit.name}-fit.txt")
    texts = {recipe_file: fit.recipe()} | ({picture: drawn(fit)} if picture else {})
    for path in texts:
        check_text_place(path, force)
    files = []
    if output is not None:
        with progress:
            run = Run(force=force, threads=threads, progress=progress)
            made = make(source, fit, output, imatrix=matrix, reading=reading, run=run)
        files = [f.path for f in made.files]
    new = [path for path in texts if not path.exists()]
    try:
        for path, text in texts.items():
            write_text(path, text)
    except OutputError:
        for path in new:  # neither of them is in the way of another run
            path.unlink(missing_ok=True)
        raise
    if as_json:
        print_json(_json(fit, recipe_file, files, seconds))
    else:
        say("\n".join(map(one_line, _lines(fit, recipe_file, files))))


def _lines(fit: Fit, recipe: Path, files: list[Path]) -> list[str]:
    from quantkit.fitting.fit import HEADINGS

    lines = [
        f"{size:>10} {bits:>6} {error:>8}   {note}"
        for size, bits, error, note in (HEADINGS, *fit.lines())
    ]
    lines.append(
        f"{recipe}: {len(fit.formats)} tensors, for --tensor-type-file with --type {fit.base}"
    )
    return [*lines, *map(str, files)]


def _json(fit: Fit, recipe: Path, files: list[Path], seconds: float) -> dict[str, Any]:
    return {
        "chosen": _mark(fit.chosen) | {"use_case": fit.use_case},
        "base": fit.base,
        "recipe_file": str(recipe),
        "files": list(map(str, files)),
        "formats": dict(fit.formats),
        "errors": {n: dict(e) for n, e in fit.errors.items()},
        "types": [_mark(m) | {"best": _mark(fit.best[m.label])} for m in fit.types],
        "frontier": [_mark(m) for m in fit.frontier],
        "seconds": round(seconds, 3),
    }


def _mark(mark: Mark) -> dict[str, Any]:
    data = asdict(mark)
    return {"bytes": data.pop("nbytes"), **data}
