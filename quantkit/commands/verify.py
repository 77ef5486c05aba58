"""The command that proves a file: verify."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, print_json, say
from quantkit.plain_text import one_line

if TYPE_CHECKING:
    from quantkit.model.open import Reading
    from quantkit.verification.divergence import Divergence
    from quantkit.verification.verdict import Verdict

LISTED = 20  # findings
TEXTS = ("Text", "KL divergence", "Perplexity", "of the source", "Same top token")


@options.takes(reading=options.reading_and_layout, progress=options.watching)
def verify(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A GGUF file, one of a set of splits, or a directory of them."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="What it was made from: a checkpoint, a GGUF file, hf://ORG/MODEL.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Of an adapter, as convert takes it."),
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", metavar="FILE", help="The importance matrix it was made with."),
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Complete a prompt in llama.cpp (quantkit-gguf[llama]).")
    ] = False,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help='The prompt of --run ("Once upon a time").')
    ] = "Once upon a time",
    kl: Annotated[
        list[Path],
        typer.Option(
            "--kl", metavar="FILE", help="A text: KL divergence from --against. May be repeated."
        ),
    ] = [],  # noqa: B006
    context: Annotated[
        int,
        typer.Option("--ctx", min=8, metavar="TOKENS", help="Tokens of context for --kl (256)."),
    ] = 256,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the errors by layer, role and expert into this SVG file."
        ),
    ] = None,
    *,
    reading: Reading,
    progress: TerminalProgress,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Prove that a file is what it should be: its bytes, structure, vocabulary and weights."""
    from quantkit import api
    from quantkit.errors import OutputExists, UsageError
    from quantkit.source.gguf_set import model_files
    from quantkit.storage.whole import check_place, write_text
    from quantkit.verification.divergence import mean
    from quantkit.verification.verdict import picture as drawn
    from quantkit.verification.verify import missing_files

    if picture and against is None:
        raise UsageError("--picture needs --against SOURCE")
    if picture and file.is_dir():
        raise UsageError(f"--picture is of one file, and {file} is a directory")
    if picture:
        check_place(picture)
        if picture.exists() and not _is_picture(picture):
            raise OutputExists(f"{picture} exists, and is no picture; name another file")
    verdicts = []
    reading = replace(reading, base=base)
    for model in model_files(file):
        with progress:
            verdict = api.verify(
                model,
                against,
                imatrix=imatrix,
                run=run,
                prompt=prompt,
                kl=kl,
                context=context,
                reading=reading,
                threads=threads,
                progress=progress,
            )
        if len(rows := verdict.divergences) > 1:
            verdict = replace(verdict, divergences=[*rows, mean(rows)])
        verdicts.append(verdict)
    if file.is_dir() and (lost := missing_files(file)):
        verdicts.append(lost)
    if picture:
        write_text(picture, drawn(verdicts[0]))
    if as_json:
        found = [verdict.as_data() for verdict in verdicts]
        print_json({"files": found} if file.is_dir() else found[0])
    else:
        texts = ["\n".join(map(one_line, _lines(verdict))) for verdict in verdicts]
        say(("\n\n" if any("\n" in text for text in texts) else "\n").join(texts))
    if not all(verdict.good for verdict in verdicts):
        raise typer.Exit(1)


def _lines(verdict: Verdict) -> list[str]:
    from quantkit.verification.verdict import SHOWN, TENSORS

    lines = [verdict.line]
    lines += [f"  {text}" for text in verdict.findings[:LISTED]]
    if (more := len(verdict.findings) - LISTED) > 0:
        lines.append(f"  and {more} more (--json has them all)")
    lines += [f"note: {text}" for text in verdict.notes]
    if run := verdict.completion:
        lines += ["", f"{run.prompt}{run.text}".rstrip()]
    if kl := verdict.divergences:
        lines += ["", *_table([TEXTS, *map(_divergence, kl)], TEXTS[:1:-1])]
    if verdict.tensors:
        rows = [TENSORS, *(t.cells() for t in verdict.worst()[:SHOWN])]
        lines += ["", *_table(rows, ("Worst block", "Cosine", "Expected", "Bytes"))]
    return lines


def _divergence(d: Divergence) -> tuple[str, ...]:
    return (
        d.text,
        f"{d.kl:.6f} ± {d.kl_error:.6f}",
        f"{d.perplexity:.4f}",
        f"{d.base_perplexity:.4f}",
        f"{100 * d.same_top:.2f}%",
    )


def _table(rows: list[tuple[str, ...]], first_to_go: Sequence[str]) -> list[str]:
    """Lines of a table with headings; a terminal too narrow for it loses these columns, in order,
    until it fits."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else inf
    for heading in first_to_go:
        if sum(max(map(len, column)) + 2 for column in columns) - 2 > room:
            columns = [column for column in columns if column[0] != heading]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _is_picture(path: Path) -> bool:
    """Whether a file may be drawn over: it is an SVG, or empty."""
    with path.open("rb") as file:
        return file.read(4) in (b"", b"<svg")
