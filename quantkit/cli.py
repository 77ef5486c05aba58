"""The command line: options become one call, errors become one line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit import __version__

if TYPE_CHECKING:
    from quantkit.convert import Report
    from quantkit.plan import Plan

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="A .gguf file or a directory (default: here).")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite outputs that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Worker threads (default: all cores).")
]
Pre = Annotated[str | None, typer.Option("--pre", help="llama.cpp's name of a BPE pre-tokenizer.")]


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
    checkpoint: Annotated[Path, typer.Argument(help="A Hugging Face checkpoint directory.")],
    output: Output = None,
    outtype: Annotated[
        str, typer.Option("--outtype", help="auto, f32, f16, bf16 or q8_0.")
    ] = "auto",
    pre: Pre = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint to one GGUF file."""
    from quantkit import convert as jobs

    with _Progress() as progress:
        plan = jobs.convert(
            checkpoint, output, outtype.lower(),
            pre=pre, force=force, threads=threads, report=progress.start,
        )  # fmt: skip
    _print_done(plan, as_json, progress.seconds)


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="A checkpoint directory or a GGUF file.")],
    types: Annotated[
        list[str], typer.Option("--type", "-t", help="Q4_K_M, Q8_0 ... May be repeated.")
    ],
    output: Output = None,
    pre: Pre = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Quantize a checkpoint or a GGUF file: all types from one read, no 16-bit file in between."""
    from quantkit import convert as jobs

    with _Progress() as progress:
        plan = jobs.quantize(
            source, types, output,
            pre=pre, force=force, threads=threads, report=progress.start,
        )  # fmt: skip
    _print_done(plan, as_json, progress.seconds)


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

    rows = [table.read_row(path, context) for path in files]
    if as_json:
        typer.echo(json.dumps(table.as_json(rows), indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(table.as_table(rows))
    else:
        typer.echo(table.as_markdown(rows))


class _Progress:
    """A progress bar on stderr, with rate and time left; silent where nobody watches."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.seconds = time.monotonic() - self._started
        if self._bar is not None:
            self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            typer.echo("stopped; nothing was left behind", err=True)
            sys.exit(130)

    @property
    def start(self) -> Report:
        """Begin: say what was chosen and draw the bar."""

        def begin(model: Any, plan: Plan) -> Any:
            for note in model.notes:
                typer.echo(f"note: {note}", err=True)
            if not sys.stderr.isatty():
                return lambda done: None
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )  # fmt: skip

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
            task = self._bar.add_task(" ".join(f.type for f in plan.files), total=plan.source_bytes)
            return lambda done: self._bar.advance(task, done)

        return begin


def _print_done(plan: Plan, as_json: bool, seconds: float) -> None:
    files = [
        {
            "path": str(f.path), "type": f.type, "bytes": f.size,
            "bits_per_weight": round(f.bits_per_weight, 4), "tensors": len(f.tensors),
        }
        for f in plan.files
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"outputs": files, "seconds": round(seconds, 3)}, indent=2))
        return
    from quantkit.report import gigabytes

    for f in plan.files:
        typer.echo(f"{f.path}  {f.type}  {gigabytes(f.size)}  {f.bits_per_weight:.2f} bpw")


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
