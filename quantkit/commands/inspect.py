"""The commands that read and tell: inspect, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from quantkit.commands.console import Progress, print_table
from quantkit.commands.options import Columns, Context, Format, Json, columns_of


def inspect(
    source: Annotated[str, typer.Argument(help="A checkpoint directory or a GGUF file.")],
    headers: Annotated[bool, typer.Option("--headers", help="Do not read the weights.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a model is, and what is wrong with it, before anything is made of it."""
    from dataclasses import asdict

    from quantkit.reporting import inspection as look

    with Progress() as progress:
        found = look.inspect(source, weights=not headers, progress=progress.bar("reading"))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        typer.echo("\n".join(look.lines(found)))


def report(
    files: Annotated[list[Path], typer.Argument(help="GGUF files.")],
    context: Context = None,
    columns: Columns = None,
    table_format: Format = None,
    as_json: Json = False,
) -> None:
    """Print the table of the model card: Markdown when piped, a drawn table at a terminal."""
    from quantkit.reporting import table

    style = "json" if as_json else table_format
    print_table(table.read_rows(files, context), columns_of(columns), style)
