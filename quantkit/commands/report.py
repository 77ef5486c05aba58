"""The command that prints the table of a model card: report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.commands import options
from quantkit.commands.console import print_table

if TYPE_CHECKING:
    from quantkit.reporting.table import Column


@options.takes(shown=options.table)
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="GGUF files, or directories of them.")
    ],
    context: options.Context = None,
    *,
    shown: tuple[list[Column] | None, options.TableFormat | None],
) -> None:
    """Print the table of the model card: Markdown when piped, a drawn table at a terminal."""
    from quantkit import api

    print_table(api.report(files, context=context).rows, *shown)
