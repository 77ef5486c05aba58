"""The command that proves a file: verify."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands.console import Progress
from quantkit.commands.options import (
    ExpertsUsed,
    Fp8AsQ8,
    FuseGateUp,
    FuseQkv,
    Json,
    KeepExperts,
    Mtp,
    NoMtp,
    Pre,
    Threads,
    imatrix_of,
    reading_of,
)

if TYPE_CHECKING:
    from quantkit.verification.verify import Verdict

SHOWN = 10  # tensors in the table
LISTED = 20  # findings
TEXTS = ("Text", "KL divergence", "Perplexity", "of the source", "Same top token")
TENSORS = ("Tensor", "Format", "Error", "Expected", "Cosine", "Worst block", "Bytes")


def verify(
    file: Annotated[Path, typer.Argument(help="A GGUF file, or one of a set of splits.")],
    against: Annotated[
        str | None, typer.Option(help="What it was made from: a checkpoint, a GGUF file, hf://...")
    ] = None,
    imatrix: Annotated[
        str | None, typer.Option("--imatrix", help="The importance matrix it was made with.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Complete a prompt in llama.cpp (quantkit[llama]).")
    ] = False,
    prompt: Annotated[str, typer.Option(help="The prompt of --run.")] = "Once upon a time",
    kl: Annotated[
        list[Path], typer.Option("--kl", help="A text: KL divergence from --against. Repeatable.")
    ] = [],  # noqa: B006
    context: Annotated[int, typer.Option("--ctx", min=8, help="Tokens of context for --kl.")] = 256,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw the errors by layer, role and expert into this SVG file."),
    ] = None,
    pre: Pre = None,
    experts_used: ExpertsUsed = None,
    keep_experts: KeepExperts = None,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
    fuse_qkv: FuseQkv = False,
    fuse_gate_up_exps: FuseGateUp = False,
    fp8_as_q8: Fp8AsQ8 = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Prove that a file is what it should be: its bytes, structure, vocabulary and weights."""
    from quantkit.verification import verify as proof
    from quantkit.verification.divergence import mean
    from quantkit.verification.llama_run import completion, divergence

    if against is None and (kl or picture or imatrix):
        raise typer.BadParameter("--kl, --picture and --imatrix need --against SOURCE")
    reading = reading_of(
        pre, experts_used, keep_experts, mtp, no_mtp, fuse_qkv, fuse_gate_up_exps, fp8_as_q8
    )
    out: dict[str, Any] = {}
    with Progress() as progress:
        found = proof.verify(
            file, against, reading=reading, imatrix=imatrix_of(imatrix, [], []),
            threads=threads, bar=progress.bar,
        )  # fmt: skip
        if run and found.sound:
            out["run"] = completion(file, prompt, found, threads)
        if kl and against is not None and found.sound:
            rows = divergence(file, against, kl, context, reading, threads, progress.bar("texts"))
            rows += [mean(rows)] if len(rows) > 1 else []
            out["kl"] = [asdict(row) for row in rows]
    if picture:
        picture.write_text(proof.picture(found), encoding="utf-8")
    if as_json:
        facts = {"verdict": "good" if found.good else "bad", **asdict(found)}
        typer.echo(json.dumps({**facts, **out}, indent=2))
    else:
        typer.echo("\n".join(_lines(found, out)))
    if not found.good:
        raise typer.Exit(1)


def _lines(found: Verdict, out: dict[str, Any]) -> list[str]:
    lines = [found.line]
    lines += [f"  {text}" for text in found.findings[:LISTED]]
    if (more := len(found.findings) - LISTED) > 0:
        lines.append(f"  and {more} more (--json has them all)")
    lines += [f"note: {text}" for text in found.notes]
    if run := out.get("run"):
        lines += ["", f"{run['prompt']}{run['text']}".rstrip()]
    if kl := out.get("kl"):
        lines += ["", *_table([TEXTS, *map(_divergence, kl)])]
    if found.tensors:
        from quantkit.verification.verify import worst

        lines += ["", *_table([TENSORS, *map(_tensor, worst(found)[:SHOWN])])]
    return lines


def _tensor(t: dict[str, Any]) -> tuple[str, ...]:
    numbers = (t["relative_error"], t["expected_error"], t["cosine"], t["worst_block"])
    error, expected, cosine, block = ("?" if x is None else f"{x:.4f}" for x in numbers)
    return t["name"], t["format"], error, expected, cosine, block, "same" if t["same"] else "other"


def _divergence(d: dict[str, Any]) -> tuple[str, ...]:
    return (
        d["text"], f"{d['kl']:.6f} ± {d['kl_error']:.6f}", f"{d['perplexity']:.4f}",
        f"{d['base_perplexity']:.4f}", f"{100 * d['same_top']:.2f}%",
    )  # fmt: skip


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
