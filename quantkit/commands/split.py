"""The commands that cut GGUF files and join them: split, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, show_written

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits


@options.takes(splits=options.splitting, run=options.running)
def split(
    source: Annotated[str, typer.Argument(help="A GGUF file, here or on the Hub.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The splits' name without -00001-of-.")
    ] = None,
    *,
    splits: Splits,
    run: dict[str, Any],
    as_json: options.Json = False,
) -> None:
    """Cut a GGUF file into splits."""
    from quantkit import api

    with TerminalProgress() as progress:
        written = api.split(source, output, splits=splits, progress=progress, **run)
    show_written(written, as_json, run["dry_run"], progress.seconds)


@options.takes(run=options.running)
def merge(
    first: Annotated[str, typer.Argument(help="Any file of a set of splits.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    *,
    run: dict[str, Any],
    as_json: options.Json = False,
) -> None:
    """Join splits into one GGUF file."""
    from quantkit import api

    with TerminalProgress() as progress:
        written = api.merge(first, output, progress=progress, **run)
    show_written(written, as_json, run["dry_run"], progress.seconds)
