"""The commands that cut GGUF files and join them: split, merge."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, show_written

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits


@options.takes(splits=options.splitting, run=options.running, progress=options.watching)
def split(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A GGUF file, here or on the Hub.")
    ],
    output: Annotated[
        Path | None,
        options.output_option("PATH", "The splits' name without -00001-of-, or a directory."),
    ] = None,
    *,
    splits: Splits,
    run: dict[str, Any],
    progress: TerminalProgress,
    as_json: options.Json = False,
) -> None:
    """Cut a GGUF file into splits."""
    from quantkit import api

    with progress:
        written = api.split(source, output, splits=splits, progress=progress, **run)
    show_written(written, as_json, run["dry_run"], progress)


@options.takes(run=options.running, progress=options.watching)
def merge(
    first: Annotated[
        str, typer.Argument(metavar="FILE", help="Any file of a set of splits, here or on the Hub.")
    ],
    output: Annotated[
        Path | None,
        options.output_option("FILE", "The file to write."),
    ] = None,
    *,
    run: dict[str, Any],
    progress: TerminalProgress,
    as_json: options.Json = False,
) -> None:
    """Join splits into one GGUF file."""
    from quantkit import api
    from quantkit.errors import UsageError

    if output is None:
        raise UsageError(f"say where to write: quantkit merge {shlex.quote(first)} -o FILE.gguf")
    with progress:
        written = api.merge(first, output, progress=progress, **run)
    show_written(written, as_json, run["dry_run"], progress)
