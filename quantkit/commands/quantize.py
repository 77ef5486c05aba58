"""The command that quantizes: quantize."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, show_written

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits
    from quantkit.model.open import Reading


@options.takes(splits=options.splitting, reading=options.reading_and_layout, run=options.running)
def quantize(
    source: options.SourceArgument,
    types: Annotated[
        list[str], typer.Option("--type", "-t", help="Q4_K_M, Q8_0 ... May be repeated.")
    ],
    output: options.Out = None,
    recipe: options.Recipe = None,
    imatrix: options.ImatrixOrAuto = None,
    calibration: options.Calibration = [],  # noqa: B006
    include_weights: Annotated[
        list[str], typer.Option(help="Use the matrix for these tensors only (part of a name).")
    ] = [],  # noqa: B006
    exclude_weights: Annotated[
        list[str], typer.Option(help="Do not use the matrix for these tensors.")
    ] = [],  # noqa: B006
    imatrix_strict: Annotated[
        bool, typer.Option("--imatrix-strict", help="Missing importance data is an error.")
    ] = False,
    pure: Annotated[
        bool, typer.Option("--pure", help="One format for all tensors, no mixture.")
    ] = False,
    output_tensor_type: Annotated[
        str | None, typer.Option(help="The format of output.weight.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(help="The format of token_embd.weight.")
    ] = None,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Leave output.weight as it is.")
    ] = False,
    tensor_type: Annotated[
        list[str], typer.Option(help="PATTERN=FORMAT, such as ffn_down=Q6_K. May be repeated.")
    ] = [],  # noqa: B006
    tensor_type_file: Annotated[
        Path | None, typer.Option(help="A file of PATTERN=FORMAT, one after another.")
    ] = None,
    prune_layers: Annotated[
        str | None, typer.Option(help="Layers to leave out, such as 3,7,8.")
    ] = None,
    override_kv: Annotated[
        list[str], typer.Option(help="KEY=TYPE:VALUE (int, float, bool, str). May be repeated.")
    ] = [],  # noqa: B006
    allow_requantize: options.AllowRequantize = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Split the outputs as the source is split.")
    ] = False,
    only_splits: Annotated[
        str | None, typer.Option(help="Make only these splits, such as 3,7-9.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="ray: make every split a task on a Ray cluster.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse an output that differs from its label.")
    ] = False,
    *,
    splits: Splits,
    reading: Reading,
    run: dict[str, Any],
    as_json: options.Json = False,
) -> None:
    """Quantize a checkpoint or a GGUF file: all types from one read, no 16-bit file in between."""
    from quantkit import api
    from quantkit.gguf.splits import parse_numbers
    from quantkit.model.pruning import parse_layers
    from quantkit.recipes import choose
    from quantkit.recipes.file_types import find_format

    lines = tensor_type_file.read_text(encoding="utf-8").splitlines() if tensor_type_file else []
    listed = [word for line in lines for word in re.sub(r"(^|\s)#.*", "", line).split()]
    overrides = choose.Overrides(
        pure,
        output_tensor_type and find_format(output_tensor_type),
        token_embedding_type and find_format(token_embedding_type),
        leave_output_tensor,
        tuple(choose.tensor_type(text) for text in (*tensor_type, *listed)),
    )
    with TerminalProgress() as progress:
        written = api.quantize(
            source,
            types,
            output,
            recipe=recipe,
            overrides=overrides,
            imatrix=imatrix
            if imatrix == api.AUTO
            else options.read_imatrix(imatrix, include_weights, exclude_weights),
            calibration=calibration,
            imatrix_strict=imatrix_strict,
            prune_layers=parse_layers(prune_layers) if prune_layers else (),
            override_kv=override_kv,
            allow_requantize=allow_requantize,
            keep_split=keep_split,
            splits=splits,
            only_splits=parse_numbers(only_splits) if only_splits else (),
            strict=strict,
            cluster=cluster,
            reading=reading,
            progress=progress,
            **run,
        )
    show_written(written, as_json, run["dry_run"], progress.seconds)
