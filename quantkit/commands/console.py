"""What a person sees while a job runs and when it is done; `--json` gives machines the same."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from quantkit import plain_text
from quantkit.plain_text import one_line
from quantkit.progress import Progress

if TYPE_CHECKING:
    from quantkit.planning.plan import Output
    from quantkit.reporting.table import Column, Row
    from quantkit.reporting.written import Written


def say(text: str, err: bool = False) -> None:
    """Print text in which words from outside may stand: nothing in it is obeyed by a terminal."""
    typer.echo(plain_text.lines(text), err=err)


class TerminalProgress(Progress):
    """Notes and a progress bar on stderr, with rate and time left; no bar where nobody watches."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._bar: Any = None
        self._step = ""

    def __enter__(self) -> TerminalProgress:
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.seconds = time.monotonic() - self._started
        if self._bar is not None:
            self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            typer.echo("stopped; the same command goes on from here", err=True)
            sys.exit(130)

    def note(self, text: str) -> None:
        say(f"note: {one_line(text)}", err=True)

    def update(self, step: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if step != self._step or self._bar is None:
            from rich import progress

            self._begin(step, progress.DownloadColumn(), progress.TransferSpeedColumn())
        self._bar.update(self._task, completed=done, total=total)

    def count(self, step: str, done: int, total: int, told: str = "") -> None:
        if not sys.stderr.isatty():
            return
        if step != self._step or self._bar is None:
            from rich import progress

            self._begin(
                step,
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TextColumn("{task.fields[told]}"),
            )
            self._first, self._since = done, time.monotonic()
        rate = (done - self._first) / max(time.monotonic() - self._since, 1e-9)
        words = f"{rate:.2f}/s" if done > self._first else ""
        self._bar.update(self._task, completed=done, total=total, rate=words, told=told)

    def _begin(self, step: str, *columns: Any) -> None:
        from rich import progress
        from rich.console import Console

        if self._bar is not None:
            self._bar.stop()
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            *columns,
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._step, self._task = step, self._bar.add_task(step, total=None, rate="", told="")


def print_table(
    rows: Sequence[Row], shown: Sequence[Column] | None = None, style: str | None = None
) -> None:
    """The table, as `table` (the default at a terminal), `markdown` (the default elsewhere),
    `json`, `csv` or `html`; `shown`: other columns than the format's own."""
    from quantkit.reporting import table

    style = style or ("table" if sys.stdout.isatty() else "markdown")
    if style == "table":
        from rich.console import Console

        Console().print(table.as_table(rows, shown or table.CARD))
    elif style == "json":
        typer.echo(json.dumps(table.as_json(rows, shown or ()), indent=2))
    elif style == "csv":
        say(table.as_csv(rows, shown or ()))
    else:
        text = table.as_html if style == "html" else table.as_markdown
        say(text(rows, shown or table.CARD))


def show_written(written: Written, as_json: bool, dry: bool, seconds: float) -> None:
    """What was written, or would be."""
    if as_json:
        data = {**written.as_data(with_tensors=dry), "seconds": round(seconds, 3)}
        typer.echo(json.dumps(data, indent=2))
        return
    from quantkit.reporting.numbers import gigabytes

    for output in written.plan.outputs:
        for f in output.files:
            line = f"{f.path}  {output.type}  {gigabytes(f.size)}"
            say(f"{line}  {output.bits_per_weight:.2f} bpw{label_differences(output)}")
        if dry:
            for t in output.by_name.values():
                say(f"  {one_line(t.name)}  {list(t.shape[::-1])}  {t.format}  {t.nbytes}")


def label_differences(output: Output) -> str:
    """What makes the file differ from its label."""
    total = sum(t.weights for t in output.by_name.values())
    text = ""
    for n, what in (
        (output.fallback_weights, "of the weights fell back, their rows do not divide into blocks"),
        (output.overridden_weights, "of the weights in formats chosen by hand"),
    ):
        text += f"; {100 * n / total:.1f}% {what}" if n else ""
    return text
