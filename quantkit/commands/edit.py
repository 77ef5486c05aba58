"""The command that changes the metadata of a GGUF file: edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, show_written


@options.takes(run=options.running, progress=options.watching)
def edit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A GGUF file, here or on the Hub.")],
    set_kv: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key; a new one with its type: KEY=TYPE:VALUE, of int, float, bool, str. "
            "May be repeated.",
        ),
    ] = [],  # noqa: B006
    chat_template: Annotated[
        Path | None,
        typer.Option("--chat-template", metavar="TEXT", help="A file with the chat template."),
    ] = None,
    remove: Annotated[
        list[str],
        typer.Option("--remove", metavar="KEY", help="Leave a key out. May be repeated."),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None,
        options.output_option("PATH", "The .gguf file to write, or a directory."),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            rich_help_panel=options.OUTPUT,
            help="Write the header over the old one, where it takes as many bytes.",
        ),
    ] = False,
    *,
    run: dict[str, Any],
    progress: TerminalProgress,
    as_json: options.Json = False,
) -> None:
    """Change the metadata of a GGUF file: keys, its chat template."""
    from quantkit import api

    with progress:
        written = api.edit(
            file,
            output,
            set_kv=set_kv,
            chat_template=chat_template,
            remove=remove,
            in_place=in_place,
            progress=progress,
            **run,
        )
    show_written(written, as_json, run["dry_run"], progress)
