"""The command that converts a checkpoint: convert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, show_written

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits
    from quantkit.model.open import Reading


@options.takes(reading=options.reading_and_layout, splits=options.splitting, run=options.running)
def convert(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint directory, or hf://ORG/MODEL.")],
    output: options.Out = None,
    outtype: Annotated[
        str, typer.Option("--outtype", help="auto, f32, f16, bf16 or q8_0.")
    ] = "auto",
    *,
    reading: Reading,
    splits: Splits,
    run: dict[str, Any],
    as_json: options.Json = False,
) -> None:
    """Convert a checkpoint to GGUF."""
    from quantkit import api

    with TerminalProgress() as progress:
        written = api.convert(
            checkpoint,
            output,
            outtype=outtype,
            reading=reading,
            splits=splits,
            progress=progress,
            **run,
        )
    show_written(written, as_json, run["dry_run"], progress.seconds)
