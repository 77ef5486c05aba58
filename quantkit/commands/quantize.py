"""The command that quantizes: quantize."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options, values
from quantkit.commands.console import TerminalProgress, show_written

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits
    from quantkit.model.open import Reading


@options.takes(
    splits=options.splitting,
    reading=options.reading_and_layout,
    run=options.running,
    progress=options.watching,
)
def quantize(
    invoked: typer.Context,
    source: options.SourceArgument,
    types: options.Types = [],  # noqa: B006
    output: options.Out = None,
    recipe: options.Recipe = None,
    imatrix: options.ImatrixOrAuto = None,
    calibration: options.Calibration = [],  # noqa: B006
    include_weights: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            rich_help_panel=options.TYPES,
            help="Use the matrix for these tensors only (part of a name). May be repeated.",
        ),
    ] = [],  # noqa: B006
    exclude_weights: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            rich_help_panel=options.TYPES,
            help="Do not use the matrix for these tensors. May be repeated.",
        ),
    ] = [],  # noqa: B006
    imatrix_strict: Annotated[
        bool,
        typer.Option(
            "--imatrix-strict",
            rich_help_panel=options.TYPES,
            help="Missing importance data is an error.",
        ),
    ] = False,
    pure: Annotated[
        bool,
        typer.Option(
            "--pure",
            rich_help_panel=options.TYPES,
            help="One format for all tensors, no mixture.",
        ),
    ] = False,
    output_tensor_type: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", rich_help_panel=options.TYPES, help="The format of output.weight."
        ),
    ] = None,
    token_embedding_type: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", rich_help_panel=options.TYPES, help="The format of token_embd.weight."
        ),
    ] = None,
    leave_output_tensor: Annotated[
        bool,
        typer.Option(
            "--leave-output-tensor",
            rich_help_panel=options.TYPES,
            help="Leave output.weight as it is.",
        ),
    ] = False,
    tensor_type: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN=FORMAT",
            rich_help_panel=options.TYPES,
            help="Another format for some tensors: ffn_down=Q6_K. May be repeated.",
        ),
    ] = [],  # noqa: B006
    tensor_type_file: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.TYPES,
            help="A file of PATTERN=FORMAT, one after another. May be repeated.",
        ),
    ] = [],  # noqa: B006
    prune_layers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            rich_help_panel=options.CONVERSION,
            help="Layers to leave out, such as 3,7,8.",
        ),
    ] = None,
    override_kv: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=TYPE:VALUE",
            rich_help_panel=options.CONVERSION,
            help="Set a key of the metadata (int, float, bool, str). May be repeated.",
        ),
    ] = [],  # noqa: B006
    allow_requantize: options.AllowRequantize = False,
    keep_split: Annotated[
        bool,
        typer.Option(
            "--keep-split",
            rich_help_panel=options.SPLITS,
            help="Split the outputs as the source is split.",
        ),
    ] = False,
    only_splits: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            rich_help_panel=options.SPLITS,
            help="Make only these splits, such as 3,7-9.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME",
            rich_help_panel=options.MACHINE,
            help="ray: make every split a task on a Ray cluster.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            rich_help_panel=options.OUTPUT,
            help="Refuse an output that differs from its label.",
        ),
    ] = False,
    *,
    splits: Splits,
    reading: Reading,
    run: dict[str, Any],
    progress: TerminalProgress,
    as_json: options.Json = False,
) -> None:
    """Quantize a checkpoint or a GGUF file: all types from one read, no 16-bit file in between."""
    from quantkit import api
    from quantkit.errors import UsageError
    from quantkit.model.pruning import parse_layers
    from quantkit.recipes import choose
    from quantkit.recipes.file_types import find_format

    typed, listed = _tensor_types(invoked.obj, tensor_type, tensor_type_file)
    overrides = choose.Overrides(
        pure,
        output_tensor_type and find_format(output_tensor_type),
        token_embedding_type and find_format(token_embedding_type),
        leave_output_tensor,
        typed,
        listed,
    )
    kinds = values.names(types)
    for option, given in (
        ("--include-weights", include_weights),
        ("--exclude-weights", exclude_weights),
    ):
        if given and imatrix in (None, api.AUTO):
            raise UsageError(f"{option} goes with --imatrix FILE")
    if imatrix_strict and imatrix is None:
        raise UsageError("--imatrix-strict goes with --imatrix")
    with progress:
        written = api.quantize(
            source,
            kinds,
            output,
            recipe=recipe,
            overrides=overrides,
            imatrix=imatrix
            if imatrix == api.AUTO
            else values.read_imatrix(imatrix, include_weights, exclude_weights),
            calibration=calibration,
            imatrix_strict=imatrix_strict,
            prune_layers=values.named("--prune-layers", prune_layers, parse_layers) or (),
            override_kv=override_kv,
            allow_requantize=allow_requantize,
            keep_split=keep_split,
            splits=splits,
            only_splits=values.numbers("--only-splits", only_splits),
            strict=strict,
            cluster=cluster,
            reading=reading,
            progress=progress,
            **run,
        )
    show_written(written, as_json, run["dry_run"], progress)


def _tensor_types(
    given: Sequence[str], typed: Sequence[str], files: Sequence[Path]
) -> tuple[tuple[tuple[str, str], ...], frozenset[tuple[str, str]]]:
    """(pattern, format) of both options in the order in which the words of the command `given` have
    them, as llama-quantize takes them, and those that only files have. Raises UsageError."""
    from quantkit.recipes.choose import tensor_type

    one, many = iter(typed), iter(files)
    pairs, listed = [], []
    for word in given:
        option = word.partition("=")[0]
        if option == "--tensor-type" and (text := next(one, None)):
            pairs.append(tensor_type(text))
        elif option == "--tensor-type-file" and (path := next(many, None)):
            lines = [re.sub(r"(^|\s)#.*", "", line) for line in values.read_lines(path)]
            of_file = [tensor_type(text) for line in lines for text in line.split()]
            pairs += of_file
            listed += of_file
    return tuple(pairs), frozenset(listed) - {tensor_type(text) for text in typed}
