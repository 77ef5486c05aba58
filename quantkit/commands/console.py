"""What a person sees while a job runs and when it is done; `--json` gives machines the same."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from quantkit import plain_text
from quantkit.plain_text import one_line
from quantkit.progress import Progress

if TYPE_CHECKING:
    from quantkit.planning.plan import Output
    from quantkit.reporting.table import Column, Row
    from quantkit.reporting.written import Written

SECONDS = 15.0  # between lines of progress where there is no terminal

SCHEMA = 1  # of what --json prints: docs/json.md, docs/quantkit.schema.json


def say(text: str, err: bool = False) -> None:
    """Print text in which words from outside may stand: nothing in it is obeyed by a terminal."""
    typer.echo(plain_text.lines(text), err=err)


class TerminalProgress(Progress):
    """What a person sees of a job, on stderr: notes, and how far it is, with rate and time left: a
    bar at a terminal, elsewhere a line every 15 seconds. Nothing of it if `quiet`; details and the
    time of each step if `verbose`."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.seconds = 0.0
        self._bar: Any = None
        self._step, self._began, self._said, self._done = "", 0.0, 0.0, 0

    def __enter__(self) -> TerminalProgress:
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.seconds = time.monotonic() - self._started
        self._end()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            typer.echo("stopped; the same command goes on from here", err=True)
            sys.exit(130)

    def note(self, text: str) -> None:
        if not self.quiet:
            say(f"note: {one_line(text)}", err=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            self.note(text)

    def update(self, step: str, done: int, total: int) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        if step != self._step:
            self._end()
            self._step, self._began, self._said = step, now, now
            if sys.stderr.isatty():
                self._bar = _bar(step, total)
        self._done = done
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, completed=done, total=total)
        elif now - self._said >= SECONDS:
            self._said = now
            say(_line(step, done, total, now - self._began), err=True)

    def count(self, step: str, done: int, total: int, told: str = "") -> None:
        if self.quiet:
            return
        now = time.monotonic()
        if step != self._step:
            self._end()
            self._step, self._began, self._said, self._first = step, now, now, done
            if sys.stderr.isatty():
                self._bar = _counting(step, total)
        rate = (done - self._first) / max(now - self._began, 1e-9)
        words = f"{told}, {rate:.2f}/s" if done > self._first else told
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, completed=done, total=total, told=words)
        elif now - self._said >= SECONDS:
            self._said = now
            say(f"{step}: {done} of {total}, {words}", err=True)

    def _end(self) -> None:
        """A step has ended."""
        if self._bar is not None:
            self._bar.stop()
        if self._step and self.verbose:
            from quantkit.reporting.numbers import gigabytes

            seconds = time.monotonic() - self._began
            say(f"{self._step}: {gigabytes(self._done)} in {seconds:.1f} s", err=True)
        self._bar, self._step = None, ""


def _line(step: str, done: int, total: int, seconds: float) -> str:
    """How far a step is, for a log."""
    from quantkit.reporting.numbers import gigabytes

    rate = done / seconds if seconds else 0.0
    left = f", {clock((total - done) / rate)} left" if rate else ""
    percent = 100 * done // total if total else 100
    return f"{step}: {percent}% of {gigabytes(total)}, {gigabytes(round(rate))}/s{left}"


def clock(seconds: float) -> str:
    """`45 s`, `3:07` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


def _bar(step: str, total: int) -> Any:
    """A bar with as much beside it as a line of this terminal holds."""
    from rich import progress
    from rich.console import Console
    from rich.table import Column as Place

    console, whole = Console(stderr=True), Place(no_wrap=True)
    parts: list[progress.ProgressColumn] = [
        progress.TextColumn("{task.description}", table_column=whole),
        progress.BarColumn(max(min(console.width - 60, 40), 8), table_column=whole),
        progress.TaskProgressColumn(table_column=whole),
    ]
    if console.width >= 90:
        parts.append(progress.DownloadColumn(table_column=whole))
    if console.width >= 54:
        parts.append(progress.TransferSpeedColumn(table_column=whole))
    if console.width >= 44:
        parts.append(progress.TimeRemainingColumn(compact=True, table_column=whole))
    bar = progress.Progress(*parts, console=console)
    bar.add_task(step, total=total)
    bar.start()
    return bar


def _counting(step: str, total: int) -> Any:
    """A bar for what is counted, and not in bytes."""
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[told]}"),
        progress.TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
    )
    bar.add_task(step, total=total, told="")
    bar.start()
    return bar


def print_json(data: Mapping[str, Any]) -> None:
    """What machines get: an object, with the number of its schema first."""
    typer.echo(json.dumps({"schema": SCHEMA, **data}, indent=2))


def print_table(
    rows: Sequence[Row], shown: Sequence[Column] | None = None, style: str | None = None
) -> None:
    """The table, as `table` (the default at a terminal), `markdown` (the default elsewhere),
    `json`, `csv` or `html`; `shown`: other columns than the format's own."""
    from quantkit.reporting import table

    style = style or ("table" if sys.stdout.isatty() else "markdown")
    if style == "table":
        from rich.console import Console

        console = Console()
        drawn, left = table.as_table(rows, shown or table.CARD, console.width)
        console.print(drawn)
        if left:
            names = ", ".join(column.name for column in left)
            say(f"no room for: {names}; a wider terminal, or --format markdown, has all", err=True)
    elif style == "json":
        print_json({"rows": table.as_json(rows, shown or ())})
    elif style == "csv":
        say(table.as_csv(rows, shown or ()))
    else:
        text = table.as_html if style == "html" else table.as_markdown
        say(text(rows, shown or table.CARD))


def show_written(written: Written, as_json: bool, dry: bool, progress: TerminalProgress) -> None:
    """What was written, or would be."""
    if as_json:
        data = {**written.as_data(with_tensors=dry), "seconds": round(progress.seconds, 3)}
        print_json(data)
        return
    if progress.quiet:
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
