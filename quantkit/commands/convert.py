"""The command that converts a checkpoint: convert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, show_written

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits
    from quantkit.model.open import Reading

OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")


@options.takes(
    reading=options.reading_and_layout,
    splits=options.splitting,
    run=options.running,
    progress=options.watching,
)
def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint directory, a LoRA adapter's directory, or hf://ORG/MODEL.",
        ),
    ],
    output: options.Out = None,
    outtype: Annotated[
        str,
        typer.Option(
            "--outtype",
            metavar="NAME",
            rich_help_panel=options.TYPES,
            autocompletion=lambda: list(OUTTYPES),
            help="auto (16 bits, as the source has them; of an adapter f32), f32, f16, bf16, q8_0, "
            "or ternary: tq1_0, tq2_0.",
        ),
    ] = "auto",
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            rich_help_panel=options.CONVERSION,
            help="The model of an adapter: a directory with its config.json, or hf://ORG/MODEL.",
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name",
            metavar="NAME",
            rich_help_panel=options.CONVERSION,
            help="general.name, in place of the one that the card or the directory gives.",
        ),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            "--metadata",
            metavar="FILE",
            rich_help_panel=options.CONVERSION,
            help="JSON with keys of general.*, such as general.author, that count before the "
            "card's.",
        ),
    ] = None,
    vocab_only: Annotated[
        bool,
        typer.Option(
            "--vocab-only",
            rich_help_panel=options.CONVERSION,
            help="The vocabulary and the other keys, without the weights.",
        ),
    ] = False,
    *,
    reading: Reading,
    splits: Splits,
    run: dict[str, Any],
    progress: TerminalProgress,
    as_json: options.Json = False,
) -> None:
    """Convert a checkpoint, or a LoRA adapter, to GGUF."""
    from quantkit import api
    from quantkit.commands.mistakes import quantized_outtype

    if outtype.lower() not in OUTTYPES:
        quantized_outtype(checkpoint, outtype)
    asked = replace(
        reading.options, model_name=model_name, metadata=metadata, vocab_only=vocab_only
    )
    with progress:
        written = api.convert(
            checkpoint,
            output,
            outtype=outtype,
            reading=replace(reading, base=base, options=asked),
            splits=splits,
            progress=progress,
            **run,
        )
    show_written(written, as_json, run["dry_run"], progress)
