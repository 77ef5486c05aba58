"""The commands that write GGUF files: convert, quantize, split, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.commands.console import Progress, print_plan
from quantkit.commands.options import (
    DryRun,
    ExpertsUsed,
    FirstEmpty,
    Force,
    Fp8AsQ8,
    FuseGateUp,
    FuseQkv,
    Json,
    KeepExperts,
    MaxSize,
    MaxTensors,
    Memory,
    Mtp,
    NoMtp,
    Out,
    Pre,
    Recipe,
    Threads,
    imatrix_of,
    reading_of,
    run_of,
    splits_of,
)
from quantkit.recipes.choose import Overrides
from quantkit.recipes.file_types import find_format, of_mixture


def convert(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint directory, or hf://ORG/MODEL.")],
    output: Out = None,
    outtype: Annotated[
        str, typer.Option("--outtype", help="auto, f32, f16, bf16 or q8_0.")
    ] = "auto",
    pre: Pre = None,
    experts_used: ExpertsUsed = None,
    keep_experts: KeepExperts = None,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
    fuse_qkv: FuseQkv = False,
    fuse_gate_up_exps: FuseGateUp = False,
    fp8_as_q8: Fp8AsQ8 = False,
    split_max_size: MaxSize = None,
    split_max_tensors: MaxTensors = 0,
    no_tensor_first_split: FirstEmpty = False,
    dry_run: DryRun = False,
    threads: Threads = None,
    memory: Memory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint to GGUF."""
    from quantkit import jobs

    splits = splits_of(split_max_size, split_max_tensors, no_tensor_first_split)
    reading = reading_of(
        pre, experts_used, keep_experts, mtp, no_mtp, fuse_qkv, fuse_gate_up_exps, fp8_as_q8
    )
    with Progress() as progress:
        run = run_of(force, dry_run, threads, memory, progress)
        plan = jobs.convert(
            checkpoint, output, outtype.lower(), reading=reading, splits=splits, run=run
        )
    print_plan(plan, as_json, dry_run, progress.seconds)


def quantize(
    source: Annotated[str, typer.Argument(help="A checkpoint directory, a GGUF file, or hf://...")],
    types: Annotated[
        list[str], typer.Option("--type", "-t", help="Q4_K_M, Q8_0 ... May be repeated.")
    ],
    output: Out = None,
    recipe: Recipe = None,
    imatrix: Annotated[
        str | None, typer.Option("--imatrix", help="An importance matrix (GGUF or .dat).")
    ] = None,
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
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize what is quantized already.")
    ] = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Split the outputs as the source is split.")
    ] = False,
    split_max_size: MaxSize = None,
    split_max_tensors: MaxTensors = 0,
    no_tensor_first_split: FirstEmpty = False,
    only_splits: Annotated[
        str | None, typer.Option(help="Make only these splits, such as 3,7-9.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="ray: make every split a task on a Ray cluster.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse an output that differs from its label.")
    ] = False,
    pre: Pre = None,
    experts_used: ExpertsUsed = None,
    keep_experts: KeepExperts = None,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
    fuse_qkv: FuseQkv = False,
    fuse_gate_up_exps: FuseGateUp = False,
    fp8_as_q8: Fp8AsQ8 = False,
    dry_run: DryRun = False,
    threads: Threads = None,
    memory: Memory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Quantize a checkpoint or a GGUF file: all types from one read, no 16-bit file in between."""
    from quantkit import jobs
    from quantkit.gguf.splits import parse_numbers
    from quantkit.model import edits
    from quantkit.planning.build import Request
    from quantkit.recipes.choose import tensor_type as parse_tensor_type

    listed = tensor_type_file.read_text(encoding="utf-8").split() if tensor_type_file else []
    request = Request(
        Overrides(
            pure,
            output_tensor_type and find_format(output_tensor_type),
            token_embedding_type and find_format(token_embedding_type),
            leave_output_tensor,
            tuple(parse_tensor_type(text) for text in (*tensor_type, *listed)),
        ),
        splits=splits_of(split_max_size, split_max_tensors, no_tensor_first_split),
        only_splits=parse_numbers(only_splits) if only_splits else (),
        keep_split=keep_split,
        allow_requantize=allow_requantize,
        strict=strict,
    )
    reading = reading_of(
        pre, experts_used, keep_experts, mtp, no_mtp, fuse_qkv, fuse_gate_up_exps, fp8_as_q8
    )
    with Progress() as progress:
        plan = jobs.quantize(
            source, of_mixture(types, recipe), output, request=request,
            imatrix=imatrix_of(imatrix, include_weights, exclude_weights),
            imatrix_strict=imatrix_strict,
            prune=edits.parse_layers(prune_layers) if prune_layers else (),
            override_kv=override_kv, reading=reading,
            run=run_of(force, dry_run, threads, memory, progress, cluster),
        )  # fmt: skip
    print_plan(plan, as_json, dry_run, progress.seconds)


def split(
    source: Annotated[str, typer.Argument(help="A GGUF file, here or on the Hub.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The splits' name without -00001-of-.")
    ] = None,
    split_max_size: MaxSize = None,
    split_max_tensors: MaxTensors = 0,
    no_tensor_first_split: FirstEmpty = False,
    dry_run: DryRun = False,
    threads: Threads = None,
    memory: Memory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut a GGUF file into splits."""
    from quantkit import jobs

    splits = splits_of(split_max_size, split_max_tensors, no_tensor_first_split)
    with Progress() as progress:
        plan = jobs.split(source, output, splits, run_of(force, dry_run, threads, memory, progress))
    print_plan(plan, as_json, dry_run, progress.seconds)


def merge(
    first: Annotated[str, typer.Argument(help="Any file of a set of splits.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    dry_run: DryRun = False,
    threads: Threads = None,
    memory: Memory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Join splits into one GGUF file."""
    from quantkit import jobs

    with Progress() as progress:
        plan = jobs.merge(first, output, run_of(force, dry_run, threads, memory, progress))
    print_plan(plan, as_json, dry_run, progress.seconds)
