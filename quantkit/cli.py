"""The command line: a list of commands; errors become one line."""

from __future__ import annotations

import gc
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.core

from quantkit import __version__
from quantkit.commands import (
    convert,
    fit,
    inspect,
    plan,
    quantize,
    release,
    report,
    split,
    verify,
)
from quantkit.plain_text import one_line

ISSUES = "https://github.com/quantkit/quantkit/issues"
COMMANDS = (
    convert.convert, quantize.quantize, split.split, split.merge,
    inspect.inspect, report.report, plan.plan, release.release, verify.verify,
    fit.fit,
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quantkit {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Convert, quantize and release GGUF models, byte for byte as llama.cpp makes them."""


class Commands(typer.core.TyperGroup):
    """The commands; an argument that turns out to be wrong is wrong usage, wherever it is found."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is named. Exit code 2 for wrong usage."""
        from quantkit.errors import UsageError

        try:
            return super().invoke(ctx)
        except UsageError as e:
            typer.echo(f"error: {e}", err=True)
            raise typer.Exit(2) from None


def _app(commands: Sequence[Callable[..., None]]) -> typer.Typer:
    made = typer.Typer(
        cls=Commands,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(root)
    for command in commands:
        made.command()(command)
    return made


app = _app(COMMANDS)


def _open_all_three() -> None:
    """A standard stream that was closed is nowhere: else a file that is opened would be it."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115


def _write_any_text() -> None:
    """Text that a console's encoding does not have is written as escapes: a name of a file is no
    reason to fail when the work is done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """The `quantkit` command. Exit code 1 for errors, 2 for wrong usage, 130 for Ctrl-C."""
    from quantkit.errors import PlanError, QuantkitError

    _open_all_three()
    _write_any_text()
    gc.set_threshold(100_000)  # imports and headers are many small objects, and hardly a cycle
    named = [c for c in COMMANDS if [c.__name__] == sys.argv[1:2]]
    try:
        (_app(named) if named else app)()  # typer looks long at every command that an app has
    except PlanError as e:
        traceback.print_exc()
        typer.echo(f"error: {e}; this is a bug in quantkit, please report it: {ISSUES}", err=True)
        sys.exit(1)
    except QuantkitError as e:
        typer.echo(f"error: {e}", err=True)
        sys.exit(1)
    except OSError as e:
        typer.echo(
            f"error: {one_line(str(e.filename or 'input or output'))}: {e.strerror}", err=True
        )
        sys.exit(1)
    except ValueError as e:
        from quant_types import KernelError

        if not isinstance(e, KernelError):
            raise
        typer.echo(f"error: {e}", err=True)
        sys.exit(1)
    finally:
        gc.freeze()  # the process ends: nothing is to be looked for


if __name__ == "__main__":
    main()
