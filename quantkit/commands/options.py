"""The options that commands share: groups of them, and what each group becomes.

A group is a function whose parameters are options. A command decorated with `takes(x=group)` has
the group's options in place of its parameter `x`, and is called with what the group makes of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import values
from quantkit.commands.console import TerminalProgress

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits
    from quantkit.model.open import Reading
    from quantkit.reporting.table import Column


def takes(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with groups of options in place of the parameters of those names."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = []
        for name, own in signature(command).parameters.items():
            group = groups.get(name)
            parameters += _evaluated(group) if group else [_with_annotation(own, command)]

        def called(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(**{p: given.pop(p) for p in signature(group).parameters})
            command(**given)

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


def _evaluated(group: Callable[..., Any]) -> list[Parameter]:
    return [_with_annotation(p, group) for p in signature(group).parameters.values()]


def _with_annotation(parameter: Parameter, function: Callable[..., Any]) -> Parameter:
    """The parameter with its annotation as typer wants it: a type, not the text of one."""
    names = vars(sys.modules[function.__module__])
    return parameter.replace(annotation=eval(parameter.annotation, names))


class TableFormat(str, Enum):
    """How a table is printed."""

    table = "table"
    markdown = "markdown"
    json = "json"
    csv = "csv"
    html = "html"


# panels of help, in the order of `help.PANELS`
TYPES, OUTPUT, HUB, SPLITS = "Types", "Output", "Hub", "Splits"
EXPERTS, CONVERSION, MACHINE = "Experts", "Conversion", "Machine"


SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A checkpoint directory, a GGUF file, or hf://ORG/MODEL."
    ),
]
Types = Annotated[
    list[str],
    typer.Option(
        "-t",
        "--type",
        "--types",
        metavar="TYPE",
        rich_help_panel=TYPES,
        autocompletion=values.complete_type,
        help="Q4_K_M, Q8_0 ..., or a set: default, static, i1. Several with commas, with spaces or "
        "repeated.",
    ),
]


def output_option(metavar: str, words: str) -> Any:
    """Where what is made goes, by each of its names."""
    names = ("-o", "--output", "--outfile")
    return typer.Option(*names, metavar=metavar, rich_help_panel=OUTPUT, help=words)


Out = Annotated[
    Path | None,
    output_option(
        "PATH", "A .gguf file, or a directory (default: here); it is made if it is not there."
    ),
]
Force = Annotated[
    bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Overwrite outputs that exist.")
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the result as JSON.")
]
Context = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        min=1,
        metavar="TOKENS",
        rich_help_panel=MACHINE,
        help="Tokens of context for Max RAM (default: the model's own, at most 4096).",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        rich_help_panel=MACHINE,
        help="Worker threads (default: all cores).",
    ),
]
AllowRequantize = Annotated[
    bool,
    typer.Option(
        "--allow-requantize", rich_help_panel=TYPES, help="Quantize what is quantized already."
    ),
]
ImatrixFile = Annotated[
    str | None,
    typer.Option(
        "--imatrix",
        metavar="FILE",
        rich_help_panel=TYPES,
        help="An importance matrix (GGUF or .dat).",
    ),
]
ImatrixOrAuto = Annotated[
    str | None,
    typer.Option(
        "--imatrix",
        metavar="FILE",
        rich_help_panel=TYPES,
        help="An importance matrix (GGUF or .dat, here or hf:), or auto.",
    ),
]
Calibration = Annotated[
    list[Path],
    typer.Option(
        metavar="TEXT",
        rich_help_panel=TYPES,
        help="A text for --imatrix auto (none, or self: the model writes it). May be repeated.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        rich_help_panel=TYPES,
        help="moe: fewer bytes for experts, more for the rest. Or FILE.gguf: each tensor as there.",
    ),
]
TargetDir = Annotated[Path | None, typer.Option(
    "--target-model-dir", metavar="DIR", rich_help_panel=CONVERSION,
    help="Of a draft: the checkpoint that it drafts for.")]  # fmt: skip
MaxSize = Annotated[
    str | None,
    typer.Option(
        "--split-max-size",
        metavar="SIZE",
        rich_help_panel=SPLITS,
        help="Begin a new file at this size: 300M, 4G.",
    ),
]
Pre = Annotated[
    str | None,
    typer.Option(
        "--pre",
        metavar="NAME",
        rich_help_panel=CONVERSION,
        help="llama.cpp's name of a BPE pre-tokenizer.",
    ),
]
ExpertsUsed = Annotated[
    int | None,
    typer.Option(
        "--experts-used",
        metavar="N",
        rich_help_panel=EXPERTS,
        help="Experts that a token uses.",
    ),
]
KeepExperts = Annotated[
    str | None,
    typer.Option(
        "--keep-experts",
        metavar="LIST",
        rich_help_panel=EXPERTS,
        help="Keep only these experts, such as 0,1,3.",
    ),
]
Mtp = Annotated[
    bool,
    typer.Option(
        "--mtp",
        rich_help_panel=CONVERSION,
        help="Only the layers that predict further tokens.",
    ),
]
DSpark = Annotated[bool, typer.Option(
    "--dspark", rich_help_panel=CONVERSION, help="Only the draft of DeepSeek-V4.")]  # fmt: skip
NoMtp = Annotated[
    bool, typer.Option("--no-mtp", "--no-nextn", rich_help_panel=CONVERSION, help="Without those.")
]
Ram = Annotated[str | None, typer.Option(
    "--ram", metavar="SIZE", rich_help_panel=MACHINE,
    help="Memory that it is to run in: 16GB.")]  # fmt: skip


def watching(
    quiet: Annotated[
        bool,
        typer.Option(
            "-q",
            "--quiet",
            rich_help_panel=OUTPUT,
            help="No notes, no progress, no summary; errors and --json are printed.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v",
            "--verbose",
            rich_help_panel=OUTPUT,
            help="Notes on everything that was chosen, and how long each step took.",
        ),
    ] = False,
) -> TerminalProgress:
    """How much a person wants to see of a job."""
    return TerminalProgress(quiet, verbose)


def reading(
    pre: Pre = None,
    experts_used: ExpertsUsed = None,
    keep_experts: KeepExperts = None,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
) -> Reading:
    """How a source is read, where the layout of its tensors does not matter."""
    return reading_and_layout(pre, experts_used, keep_experts, mtp, no_mtp)


def reading_and_layout(
    pre: Pre = None,
    experts_used: ExpertsUsed = None,
    keep_experts: KeepExperts = None,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
    fuse_qkv: Annotated[
        bool,
        typer.Option(
            "--fuse-qkv", rich_help_panel=CONVERSION, help="One tensor for attention's q, k and v."
        ),
    ] = False,
    fuse_gate_up_exps: Annotated[
        bool,
        typer.Option(
            "--fuse-gate-up-exps",
            rich_help_panel=EXPERTS,
            help="One tensor for the experts' gate and up.",
        ),
    ] = False,
    fp8_as_q8: Annotated[
        bool,
        typer.Option("--fp8-as-q8", rich_help_panel=CONVERSION, help="What is FP8 becomes Q8_0."),
    ] = False,
    mmproj: Annotated[
        bool,
        typer.Option(
            "--mmproj",
            rich_help_panel=CONVERSION,
            help="The encoders of images and sound, not the text.",
        ),
    ] = False,
    mistral_format: Annotated[
        bool,
        typer.Option(
            "--mistral-format",
            rich_help_panel=CONVERSION,
            help="Read params.json and consolidated*.safetensors, not config.json.",
        ),
    ] = False,
    dense_modules: Annotated[
        bool,
        typer.Option(
            "--sentence-transformers-dense-modules",
            rich_help_panel=CONVERSION,
            help="EmbeddingGemma: with the dense modules after its output.",
        ),
    ] = False,
    target: TargetDir = None,
    dspark: DSpark = False,
) -> Reading:
    """How a source is read, and which of its tensors are joined or kept."""
    from quantkit.architectures.rules import ConversionOptions
    from quantkit.errors import UsageError
    from quantkit.model.open import Reading

    if mtp and no_mtp:
        raise UsageError("--mtp and --no-mtp exclude each other")
    if dspark and (mtp or no_mtp or mmproj):
        raise UsageError("--dspark and --mtp, --no-mtp or --mmproj exclude each other")
    layers = "only" if mtp else "without" if no_mtp else "with"
    if mmproj and layers != "with":
        raise UsageError(f"--mmproj and {'--mtp' if mtp else '--no-mtp'} exclude each other")
    options = ConversionOptions(
        layers, fuse_qkv, fuse_gate_up_exps, fp8_as_q8, mistral_format, dense_modules, mmproj,
        target, dspark=dspark,
    )  # fmt: skip
    kept = values.numbers("--keep-experts", keep_experts)
    return Reading(pre, options, kept, experts_used)


def splitting(
    split_max_size: MaxSize = None,
    split_max_tensors: Annotated[
        int,
        typer.Option(
            "--split-max-tensors",
            min=0,
            metavar="N",
            rich_help_panel=SPLITS,
            help="Begin a new file after so many tensors.",
        ),
    ] = 0,
    no_tensor_first_split: Annotated[
        bool,
        typer.Option(
            "--no-tensor-first-split",
            rich_help_panel=SPLITS,
            help="Only metadata in the first split.",
        ),
    ] = False,
) -> Splits:
    """Where a new file begins."""
    from quantkit.gguf.splits import Splits

    limit = values.size("--split-max-size", split_max_size) or 0
    return Splits(limit, split_max_tensors, no_tensor_first_split)


def running(
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=OUTPUT, help="Say what would be written; write nothing."
        ),
    ] = False,
    threads: Threads = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            rich_help_panel=MACHINE,
            help="Stay below this much memory: 512MB, 1GB.",
        ),
    ] = None,
    force: Force = False,
) -> dict[str, Any]:
    """How a job is carried out, as the functions of the API take it."""
    bound = values.size("--memory", memory)
    return {"dry_run": dry_run, "threads": threads, "memory": bound, "force": force}


def table(
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="LIST",
            rich_help_panel=OUTPUT,
            help="The columns, such as name,size,ram.",
        ),
    ] = None,
    table_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            autocompletion=lambda: [kind.value for kind in TableFormat],
            rich_help_panel=OUTPUT,
            help="table, markdown, json, csv or html (default: a table at a terminal, else "
            "Markdown).",
        ),
    ] = None,
    as_json: Json = False,
) -> tuple[list[Column] | None, TableFormat | None]:
    """The columns of a table (None: the usual ones) and how it is printed."""
    from quantkit.reporting.table import columns as named

    kinds = [kind.value for kind in TableFormat]
    style = TableFormat(values.choice("--format", table_format, kinds)) if table_format else None
    style = TableFormat.json if as_json else style
    return (named(values.names(columns)) if columns else None), style
