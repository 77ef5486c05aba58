"""The command line: options become one call, errors become one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit import __version__
from quantkit.console import Progress, print_plan

if TYPE_CHECKING:
    from quantkit.convert import Reading, Run
    from quantkit.imatrix import Imatrix
    from quantkit.splits import Splits

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Out = Annotated[
    Path | None, typer.Option("-o", "--output", help="A .gguf file or a directory (default: here).")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite outputs that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Worker threads (default: all cores).")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")
]
MaxSize = Annotated[
    str | None, typer.Option("--split-max-size", help="Begin a new file at this size: 300M, 4G.")
]
MaxTensors = Annotated[
    int, typer.Option("--split-max-tensors", min=0, help="Begin a new file after so many tensors.")
]
FirstEmpty = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="Only metadata in the first split.")
]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Stay below this much memory: 512MB, 1GB.")
]
Pre = Annotated[str | None, typer.Option("--pre", help="llama.cpp's name of a BPE pre-tokenizer.")]


ExpertsUsed = Annotated[
    int | None, typer.Option("--experts-used", help="Experts that a token uses.")
]
KeepExperts = Annotated[
    str | None, typer.Option("--keep-experts", help="Keep only these experts, such as 0,1,3.")
]
Mtp = Annotated[bool, typer.Option("--mtp", help="Only the layers that predict further tokens.")]
NoMtp = Annotated[bool, typer.Option("--no-mtp", help="Without those layers.")]
FuseQkv = Annotated[bool, typer.Option("--fuse-qkv", help="One tensor for attention's q, k and v.")]
FuseGateUp = Annotated[
    bool, typer.Option("--fuse-gate-up-exps", help="One tensor for the experts' gate and up.")
]
Fp8AsQ8 = Annotated[bool, typer.Option("--fp8-as-q8", help="What is FP8 becomes Q8_0.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quantkit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Convert, quantize and release GGUF models, byte for byte as llama.cpp makes them."""


@app.command()
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
    from quantkit import convert as jobs

    splits = _splits(split_max_size, split_max_tensors, no_tensor_first_split)
    reading = _reading(
        pre, experts_used, keep_experts, mtp, no_mtp, fuse_qkv, fuse_gate_up_exps, fp8_as_q8
    )
    with Progress() as progress:
        run = _run(force, dry_run, threads, memory, progress)
        plan = jobs.convert(
            checkpoint, output, outtype.lower(), reading=reading, splits=splits, run=run
        )
    print_plan(plan, as_json, dry_run, progress.seconds)


@app.command()
def quantize(
    source: Annotated[str, typer.Argument(help="A checkpoint directory, a GGUF file, or hf://...")],
    types: Annotated[
        list[str], typer.Option("--type", "-t", help="Q4_K_M, Q8_0 ... May be repeated.")
    ],
    output: Out = None,
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
    from quantkit import convert as jobs
    from quantkit import edits, recipes
    from quantkit.planner import Request
    from quantkit.splits import parse_numbers

    listed = tensor_type_file.read_text(encoding="utf-8").split() if tensor_type_file else []
    request = Request(
        recipes.Overrides(
            pure,
            output_tensor_type and recipes.find_format(output_tensor_type),
            token_embedding_type and recipes.find_format(token_embedding_type),
            leave_output_tensor,
            tuple(recipes.tensor_type(text) for text in (*tensor_type, *listed)),
        ),
        splits=_splits(split_max_size, split_max_tensors, no_tensor_first_split),
        only_splits=parse_numbers(only_splits) if only_splits else (),
        keep_split=keep_split,
        allow_requantize=allow_requantize,
        strict=strict,
    )
    reading = _reading(
        pre, experts_used, keep_experts, mtp, no_mtp, fuse_qkv, fuse_gate_up_exps, fp8_as_q8
    )
    with Progress() as progress:
        plan = jobs.quantize(
            source, types, output, request=request,
            imatrix=_imatrix(imatrix, include_weights, exclude_weights),
            imatrix_strict=imatrix_strict,
            prune=edits.parse_layers(prune_layers) if prune_layers else (),
            override_kv=override_kv, reading=reading,
            run=_run(force, dry_run, threads, memory, progress, cluster),
        )  # fmt: skip
    print_plan(plan, as_json, dry_run, progress.seconds)


@app.command()
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
    from quantkit import convert as jobs

    splits = _splits(split_max_size, split_max_tensors, no_tensor_first_split)
    with Progress() as progress:
        plan = jobs.split(source, output, splits, _run(force, dry_run, threads, memory, progress))
    print_plan(plan, as_json, dry_run, progress.seconds)


@app.command()
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
    from quantkit import convert as jobs

    with Progress() as progress:
        plan = jobs.merge(first, output, _run(force, dry_run, threads, memory, progress))
    print_plan(plan, as_json, dry_run, progress.seconds)


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="A checkpoint directory or a GGUF file.")],
    headers: Annotated[bool, typer.Option("--headers", help="Do not read the weights.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a model is, and what is wrong with it, before anything is made of it."""
    from dataclasses import asdict

    from quantkit import inspect as look

    with Progress() as progress:
        found = look.inspect(source, weights=not headers, progress=progress.bar("reading"))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        typer.echo("\n".join(look.lines(found)))


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="GGUF files.")],
    context: Annotated[
        int | None, typer.Option("--ctx", min=1, help="Tokens of context for Max RAM.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the table of the model card: Markdown when piped, a drawn table at a terminal."""
    from quantkit import report as table

    rows = table.read_rows(files, context)
    if as_json:
        typer.echo(json.dumps(table.as_json(rows), indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(table.as_table(rows))
    else:
        typer.echo(table.as_markdown(rows))


def _run(
    force: bool, dry: bool, threads: int | None, memory: str | None, progress: Progress,
    cluster: str | None = None,
) -> Run:  # fmt: skip
    from quantkit.convert import Run
    from quantkit.splits import parse_size

    return Run(force, dry, threads, parse_size(memory) if memory else None, cluster, progress.start)


def _reading(
    pre: str | None, experts_used: int | None, keep: str | None, mtp: bool, no_mtp: bool,
    fuse_qkv: bool, fuse_gate_up: bool, fp8_as_q8: bool,
) -> Reading:  # fmt: skip
    from quantkit.convert import Reading
    from quantkit.rules import Options
    from quantkit.splits import parse_numbers

    if mtp and no_mtp:
        raise typer.BadParameter("--mtp and --no-mtp exclude each other")
    layers = "only" if mtp else "without" if no_mtp else "with"
    options = Options(layers, fuse_qkv, fuse_gate_up, fp8_as_q8)
    return Reading(pre, options, parse_numbers(keep) if keep else (), experts_used)


def _splits(size: str | None, tensors: int, no_tensor_first: bool) -> Splits:
    from quantkit.splits import Splits, parse_size

    return Splits(parse_size(size) if size else 0, tensors, no_tensor_first)


def _imatrix(path: str | None, include: list[str], exclude: list[str]) -> Imatrix | None:
    if path is None:
        return None
    from quantkit.imatrix import read_imatrix, selected

    return selected(read_imatrix(path), include, exclude)


def main() -> None:
    """The `quantkit` command. Exit code 1 for errors, 2 for wrong usage, 130 for Ctrl-C."""
    from quantkit.errors import QuantkitError

    try:
        app()
    except QuantkitError as e:
        typer.echo(f"error: {e}", err=True)
        sys.exit(1)
    except OSError as e:
        typer.echo(f"error: {e.filename or 'input or output'}: {e.strerror}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
