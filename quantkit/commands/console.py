"""What a person sees while a job runs and when it is done; `--json` gives machines the same."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from quantkit.model.model import Model
    from quantkit.planning.plan import Output, Plan
    from quantkit.reporting.table import Column, Row


class Progress:
    """A progress bar on stderr, with rate and time left; silent where nobody watches."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.seconds = time.monotonic() - self._started
        if self._bar is not None:
            self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            typer.echo("stopped; the same command goes on from here", err=True)
            sys.exit(130)

    def start(self, model: Model, plan: Plan) -> Callable[[int], None]:
        """Say what was chosen, draw the bar, and answer how to move it (bytes that are done)."""
        for note in model.notes:
            typer.echo(f"note: {note}", err=True)
        show = self.bar(" ".join(output.type for output in plan.outputs))
        total, so_far = plan.source_bytes, 0

        def advance(done: int) -> None:
            nonlocal so_far
            so_far += done
            show(so_far, total)

        return advance

    def bar(self, label: str) -> Callable[[int, int], None]:
        """Draw a bar, and answer how to set it: bytes done, bytes in all."""
        if not sys.stderr.isatty():
            return lambda done, total: None
        from rich import progress
        from rich.console import Console

        if self._bar is not None:
            self._bar.stop()
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"), progress.BarColumn(),
            progress.DownloadColumn(), progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self._bar.start()
        task = self._bar.add_task(label, total=None)
        return lambda done, total: self._bar.update(task, completed=done, total=total)


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
        typer.echo(table.as_csv(rows, shown or ()))
    else:
        text = table.as_html if style == "html" else table.as_markdown
        typer.echo(text(rows, shown or table.CARD))


def print_plan(plan: Plan, as_json: bool, dry: bool, seconds: float) -> None:
    """What was written, or would be."""
    if as_json:
        outputs = [_as_json(output, dry) for output in plan.outputs]
        typer.echo(json.dumps({"outputs": outputs, "seconds": round(seconds, 3)}, indent=2))
        return
    from quantkit.reporting.numbers import gigabytes

    for output in plan.outputs:
        for f in output.files:
            line = f"{f.path}  {output.type}  {gigabytes(f.size)}"
            typer.echo(f"{line}  {output.bits_per_weight:.2f} bpw{honest(output)}")
        if dry:
            for t in output.by_name.values():
                typer.echo(f"  {t.name}  {list(t.shape[::-1])}  {t.format}  {t.nbytes}")


def honest(output: Output) -> str:
    """What makes the file differ from its label."""
    total = sum(t.weights for t in output.by_name.values())
    said = ""
    for n, what in (
        (output.fallback_weights, "of the weights fell back, their rows do not divide into blocks"),
        (output.overridden_weights, "of the weights in formats chosen by hand"),
    ):
        said += f"; {100 * n / total:.1f}% {what}" if n else ""
    return said


def _as_json(output: Output, with_tensors: bool) -> dict[str, Any]:
    out: dict[str, Any] = {
        "type": output.type,
        "bytes": output.size,
        "bits_per_weight": round(output.bits_per_weight, 4),
        "fallback_weights": output.fallback_weights,
        "overridden_weights": output.overridden_weights,
        "files": [
            {"path": str(f.path), "bytes": f.size, "tensors": len(f.tensors)} for f in output.files
        ],
    }
    if with_tensors:
        out["tensors"] = [
            {"name": t.name, "shape": list(t.shape[::-1]), "format": t.format, "bytes": t.nbytes}
            for t in output.by_name.values()
        ]
    return out
