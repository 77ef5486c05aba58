"""The command that says what a model is: inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, print_json, say
from quantkit.plain_text import one_line


@options.takes(progress=options.watching)
def inspect(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="A checkpoint directory, a GGUF file, or hf://ORG/MODEL."
        ),
    ] = None,
    headers: Annotated[bool, typer.Option("--headers", help="Do not read the weights.")] = False,
    architectures: Annotated[
        bool, typer.Option("--architectures", help="List the architectures that are converted.")
    ] = False,
    *,
    progress: TerminalProgress,
    as_json: options.Json = False,
) -> None:
    """Say what a model is, and what is wrong with it, before anything is made of it."""
    from quantkit import api
    from quantkit.architectures import supported
    from quantkit.errors import UsageError
    from quantkit.reporting.inspection import lines

    if architectures:
        names = supported()
        if as_json:
            print_json({"architectures": names})
        else:
            typer.echo("\n".join(names))
        return
    if source is None:
        raise UsageError("name a checkpoint directory or a GGUF file, or give --architectures")
    with progress:
        inspection = api.inspect(source, weights=not headers, progress=progress)
    if as_json:
        print_json(inspection.as_data())
    else:
        say("\n".join(map(one_line, lines(inspection))))
