"""The options that commands share, and what they become."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.commands.console import Progress

if TYPE_CHECKING:
    from quantkit.calibration.imatrix import Imatrix
    from quantkit.gguf.splits import Splits
    from quantkit.jobs import Run
    from quantkit.model.open import Reading
    from quantkit.reporting.table import Column


class TableFormat(str, Enum):
    """How a table is printed."""

    table = "table"
    markdown = "markdown"
    json = "json"
    csv = "csv"
    html = "html"


Out = Annotated[
    Path | None, typer.Option("-o", "--output", help="A .gguf file or a directory (default: here).")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite outputs that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Context = Annotated[int | None, typer.Option("--ctx", min=1, help="Tokens of context for Max RAM.")]
Columns = Annotated[
    str | None, typer.Option("--columns", help="The columns, such as name,size,ram.")
]
Format = Annotated[
    TableFormat | None,
    typer.Option("--format", help="Of the table (default: drawn at a terminal, else Markdown)."),
]
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


Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="moe: in no more bytes, fewer for experts, more for the rest."),
]
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


def run_of(
    force: bool, dry: bool, threads: int | None, memory: str | None, progress: Progress,
    cluster: str | None = None,
) -> Run:  # fmt: skip
    from quantkit.gguf.splits import parse_size
    from quantkit.jobs import Run

    return Run(force, dry, threads, parse_size(memory) if memory else None, cluster, progress.start)


def reading_of(
    pre: str | None, experts_used: int | None, keep: str | None, mtp: bool, no_mtp: bool,
    fuse_qkv: bool, fuse_gate_up: bool, fp8_as_q8: bool,
) -> Reading:  # fmt: skip
    from quantkit.architectures.rules import Options
    from quantkit.gguf.splits import parse_numbers
    from quantkit.model.open import Reading

    if mtp and no_mtp:
        raise typer.BadParameter("--mtp and --no-mtp exclude each other")
    layers = "only" if mtp else "without" if no_mtp else "with"
    options = Options(layers, fuse_qkv, fuse_gate_up, fp8_as_q8)
    return Reading(pre, options, parse_numbers(keep) if keep else (), experts_used)


def splits_of(size: str | None, tensors: int, no_tensor_first: bool) -> Splits:
    from quantkit.gguf.splits import Splits, parse_size

    return Splits(parse_size(size) if size else 0, tensors, no_tensor_first)


def columns_of(names: str | None) -> list[Column] | None:
    from quantkit.reporting.table import columns

    return columns([name.strip() for name in names.split(",")]) if names else None


def imatrix_of(path: str | None, include: list[str], exclude: list[str]) -> Imatrix | None:
    if path is None:
        return None
    from quantkit.calibration.imatrix import read_imatrix, selected

    return selected(read_imatrix(path), include, exclude)
