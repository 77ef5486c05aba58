"""The command that makes, merges and shows importance matrices: imatrix."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options, values
from quantkit.commands.console import TerminalProgress, print_json, say
from quantkit.plain_text import one_line

if TYPE_CHECKING:
    from quantkit.calibration.measure import Measured
    from quantkit.calibration.sums import Sums
    from quantkit.model.open import Reading


class Format(str, Enum):
    """How a matrix is stored."""

    gguf = "gguf"
    dat = "dat"


@options.takes(reading=options.reading, progress=options.watching)
def imatrix(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="A checkpoint or GGUF file; with --merge, matrices."),
    ],
    text: Annotated[
        list[Path],
        typer.Option(
            "-f",
            "--file",
            "--calibration",
            metavar="TEXT",
            help="A text in UTF-8 (none, or self: the model writes it). Repeatable.",
        ),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The matrix.")
    ] = None,
    output_format: Annotated[
        Format,
        typer.Option("--format", metavar="FORMAT", help="gguf (llama-imatrix's), or dat (older)."),
    ] = Format.gguf,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add matrices up (of one: write it in --format).")
    ] = False,
    show_statistics: Annotated[
        bool, typer.Option("--show-statistics", help="What a matrix says of tensors and experts.")
    ] = False,
    context: Annotated[
        int, typer.Option("--ctx", min=8, metavar="TOKENS", help="Tokens of a chunk.")
    ] = 512,
    chunks: Annotated[
        int | None,
        typer.Option("--chunks", min=1, metavar="N", help="Use so many chunks (default: all)."),
    ] = None,
    from_chunk: Annotated[
        int, typer.Option("--from-chunk", min=0, metavar="N", help="Skip so many.")
    ] = 0,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Data for the output matrix, too.")
    ] = False,
    nextn: Annotated[
        bool,
        typer.Option("--nextn", help="Data for the layers that predict further tokens, too."),
    ] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Control tokens may be spelled in the text.")
    ] = False,
    no_ppl: Annotated[bool, typer.Option("--no-ppl", help="Do not take the perplexity.")] = False,
    save_frequency: Annotated[
        int,
        typer.Option(
            "--save-frequency", min=0, metavar="N", help="Keep a copy every so many chunks."
        ),
    ] = 0,
    min_tokens: Annotated[
        int,
        typer.Option(
            "--min-tokens",
            min=0,
            metavar="N",
            help="Every expert is to see so many (see the docs).",
        ),
    ] = 0,
    with_type: Annotated[
        str | None,
        typer.Option(
            "--with", metavar="TYPE", help="The type that a checkpoint is made to for this (Q8_0)."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            rich_help_panel=options.MACHINE,
            help="What there is, for a model that is larger: 32GB.",
        ),
    ] = None,
    *,
    reading: Reading,
    progress: TerminalProgress,
    threads: options.Threads = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Make an importance matrix as llama-imatrix does; or merge or show some."""
    from quantkit import api
    from quantkit.calibration.measure import Options
    from quantkit.calibration.sums import read_sums
    from quantkit.errors import UsageError

    if show_statistics:
        if merge or text or output:
            raise UsageError("--show-statistics goes with matrices alone")
        matrices = [(source, read_sums(source)) for source in sources]
        if as_json:
            told = [_told(source, sums, min_tokens) for source, sums in matrices]
            print_json({"files": told} if len(told) > 1 else told[0])
            return
        for source, sums in matrices:
            _show(source, sums, min_tokens)
        return
    if output is None:
        raise UsageError("give the matrix a name, such as -o model.imatrix.gguf")
    if merge:
        if text:
            raise UsageError("--merge adds matrices up; it takes no text")
        api.merge_imatrix(sources, output, dat=output_format is Format.dat, force=force)
        _show_made(output, None, min_tokens, as_json, 0.0)
        return
    if len(sources) != 1:
        raise UsageError("give one source; matrices are added up with --merge")
    wanted = Options(
        context=context,
        chunks=chunks,
        first=from_chunk,
        outputs=process_output,
        special=parse_special,
        perplexity=not no_ppl,
        copies=save_frequency,
        dat=output_format is Format.dat,
        least=min_tokens,
        nextn=nextn,
    )
    with progress:
        if output.suffix == ".dat" and output_format is Format.gguf:
            progress.note(f"{output.name} will be a GGUF file; --format dat makes the older one")
        made = api.imatrix(
            sources[0],
            text,
            output,
            options=wanted,
            with_type=with_type,
            reading=reading,
            threads=threads,
            memory=values.size("--memory", memory),
            force=force,
            progress=progress,
        )
    _show_made(output, made, min_tokens, as_json, progress.seconds)


def _show_made(
    path: Path, made: Measured | None, least: int, as_json: bool, seconds: float
) -> None:
    from quantkit.calibration.sums import read_sums

    sums = read_sums(path)
    data = _told(str(path), sums, least)
    if made is not None:
        data |= {
            "seconds": round(seconds, 3),
            "perplexity": made.perplexity,
            "further": [{"experts_used": used or None, "chunks": n} for used, n in made.further],
            "widened": list(made.reached),
        }
    if as_json:
        print_json(data)
        return
    perplexity = made.perplexity if made else None
    beside = f"  perplexity {perplexity:.4f}" if perplexity else ""
    say(f"{one_line(str(path))}  {len(sums.entries)} tensors  {sums.chunks} chunks{beside}")
    for used, chunks in made.further if made else ():
        say(f"  {chunks} further chunks" + (f" with {used} experts a token" if used else ""))
    if made and made.reached:
        say(f"  matrices of experts that only this reached: {len(made.reached)}")
    for line in _poor(sums, least):
        say(f"  {line}")


def _poor(sums: Sums, least: int) -> list[str]:
    """Experts with little data or none, a line a layer."""
    from quantkit.calibration.statistics import routing

    lines = []
    for layer, told in routing(sums.entries).items():
        if few := told.below(max(least, 1)):
            what = f"below {least} tokens" if least else "never reached"
            listed = ", ".join(map(str, few[:8])) + (" ..." if len(few) > 8 else "")
            lines.append(
                f"layer {layer}: {len(few)} of {told.tokens.size} experts {what}: {listed}"
            )
    return lines


def _told(name: str, sums: Sums, least: int) -> dict[str, Any]:
    """A matrix as plain values: tensors, layers, experts."""
    from dataclasses import asdict
    from math import isfinite

    from quantkit.calibration.statistics import SCHEMA, layer_statistics, routing, tensor_statistics

    def plain(value: float) -> float | None:
        return value if isfinite(value) else None

    told = tensor_statistics(sums.entries, sums.nextn)
    return {
        "file": name,
        "chunks": sums.chunks,
        "chunk_size": sums.chunk_size,
        "nextn": sums.nextn,
        "datasets": list(sums.datasets),
        "tensors": {
            tensor: dict(zip(SCHEMA, map(plain, s.row.tolist()), strict=True))
            for tensor, s in told.items()
        },
        "layers": {
            layer: {k: plain(v) for k, v in asdict(s).items()}
            for layer, s in layer_statistics(told).items()
        },
        "experts": {
            layer: {
                "tokens": r.tokens.tolist(),
                "evenness": plain(r.evenness),
                "below": r.below(max(least, 1)),
            }
            for layer, r in routing(sums.entries).items()
        },
    }


def _labels(sums: Sums) -> Callable[[int | None], str]:
    """What layers are called in a table: those that predict further tokens, as llama-imatrix calls
    them."""
    from quantkit.calibration.statistics import first_predicting

    first = first_predicting(sums.entries, sums.nextn)

    def label(layer: int | None) -> str:
        if layer is None:
            return "-"
        return f"mtp{layer - int(first)}" if layer >= first else str(layer)

    return label


def _show(name: str, sums: Sums, least: int) -> None:
    """What llama-imatrix shows of a matrix, and its experts."""
    from quantkit.calibration.statistics import (
        compared,
        layer_of,
        layer_statistics,
        routing,
        shown,
        tensor_statistics,
    )

    told = tensor_statistics(sums.entries, sums.nextn)
    say(f"{one_line(name)}: {len(told)} tensors, {sums.chunks} chunks of {sums.chunk_size} tokens")
    say(
        f"\n{'Layer':>5} {'Tensor':<36} {'Mean':>10} {'StdDev':>10} {'Skew':>10} {'Kurt':>11} "
        f"{'H Norm':>8} {'Sum E[A^2]':>14} {'Gain':>8} {'L2 Dist':>10} {'PCC':>8} {'Cov':>10}"
    )

    label = _labels(sums)

    def place(tensor: str) -> tuple[int, str]:
        layer = layer_of(tensor)
        return (1 << 30 if layer is None else layer), tensor

    for tensor in sorted(told, key=place):
        s = told[tensor]
        layer, (distance, _, pearson, covariance) = layer_of(tensor), compared(s.like)
        say(
            f"{label(layer):>5} {one_line(tensor)[-36:]:<36} "
            f"{s.mean:>10.4f} {s.deviation:>10.4f} {s.skewness:>10.4f} {s.kurtosis:>11.4f} "
            f"{shown(s.evenness, 2):>7}% {s.energy:>14.4f} {shown(s.gain, 2):>8} "
            f"{shown(distance):>10} {shown(pearson):>8} {shown(covariance):>10}"
        )
    say(
        f"\n{'Layer':>5} {'Sum E[A^2]':>14} {'Gain':>8} {'L2 Dist':>12} {'CosSim':>8} {'PCC':>8} "
        f"{'Cov':>10}"
    )
    for number, each in layer_statistics(told).items():
        say(
            f"{label(number):>5} {each.energy:>14.4f} {shown(each.gain, 2):>8} "
            f"{shown(each.distance):>12} {shown(each.cosine):>8} {shown(each.pearson):>8} "
            f"{shown(each.covariance):>10}"
        )
    experts = routing(sums.entries)
    if not experts:
        return
    say(f"\n{'Layer':>5} {'Experts':>7} {'Evenness':>9} {'Least':>10} {'Most':>10} {'Share':>16}")
    for number, r in experts.items():
        low, high = 100 * r.shares.min(), 100 * r.shares.max()
        say(
            f"{label(number):>5} {r.tokens.size:>7} {shown(r.evenness, 1):>8}% "
            f"{r.tokens.min():>10} {r.tokens.max():>10} {low:>6.2f}% - {high:.2f}%"
        )
    for line in _poor(sums, least):
        say(line)
