"""The command line: a list of commands; errors become one line."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer
import typer.core

from quantkit import __version__
from quantkit.commands import (
    convert,
    edit,
    fit,
    help,
    imatrix,
    inspect,
    plan,
    quantize,
    release,
    report,
    split,
    verify,
)
from quantkit.commands.console import print_json
from quantkit.plain_text import one_line

ISSUES = "https://github.com/quantkit/quantkit/issues"
COMMANDS = (
    convert.convert, quantize.quantize, split.split, split.merge, edit.edit,
    inspect.inspect, report.report, plan.plan, release.release, verify.verify,
    fit.fit, imatrix.imatrix,
)  # fmt: skip

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # what a full disk answers
# the root of click's errors, which typer brings with it or imports, as its version is
_WRONG_USAGE: Any = typer.BadParameter.__mro__[2]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quantkit {__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Convert, quantize and release GGUF models, byte for byte as llama.cpp makes them."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


class Command(typer.core.TyperCommand):
    """One command: its help is ours, and it understands words in another tool's order."""

    def get_help(self, ctx: Any) -> str:
        """Its help."""
        return help.of_command(self)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options and arguments. Words that have no place get one, or a UsageError says which."""
        if any(not word or word.endswith("=") or "~" in word for word in args):
            from quantkit.commands import mistakes

            mistakes.check_empty(self, args)
            mistakes.check_tilde(self, args)
        try:
            left = super().parse_args(ctx, list(args))
        except _WRONG_USAGE as e:
            e.ctx = e.ctx or ctx
            raise
        if ctx.args and not ctx.resilient_parsing:
            from quantkit.commands import mistakes

            first = next(p.name for p in self.params if p.param_type_name == "argument")
            given = mistakes.others_given(self, args)
            mistakes.settle_words(str(self.name), ctx.params, str(first), ctx.args, given)
            ctx.args, left = [], []
        return left


class Commands(typer.core.TyperGroup):
    """The commands; an argument that turns out to be wrong is wrong usage, wherever it is found."""

    def get_help(self, ctx: Any) -> str:
        """The help of the whole."""
        return help.of_group(self)

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> Any:
        """Run as a program: exit code 2 and one line for wrong usage, 130 for Ctrl-C."""
        given = list(sys.argv[1:] if args is None else args)
        extra |= {"prog_name": "quantkit", "standalone_mode": False, "obj": given}
        try:
            code = super().main(given, **extra)
        except _WRONG_USAGE as e:
            from quantkit.commands import mistakes

            everything: Any = typer.main.get_command(app)
            _say_error(mistakes.words(e, everything.commands), given)
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is named first. Raises UsageError if there is none of that name."""
        if not (ctx.resilient_parsing or args[0] in self.commands or args[0].startswith("-")):
            from quantkit.commands import mistakes
            from quantkit.errors import UsageError

            raise UsageError(mistakes.unknown_command(args[0], [c.__name__ for c in COMMANDS]))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is named. Exit code 2 for wrong usage."""
        from quantkit.errors import UsageError

        try:
            return super().invoke(ctx)
        except UsageError as e:
            _say_error(str(e), ctx.obj)
            raise typer.Exit(2) from None


def _say_error(
    text: str, given: Sequence[str] | None = None, kind: str = "UsageError", code: int = 2
) -> None:
    """One line on stderr; for who asked for JSON (in the arguments `given`), JSON on stdout too."""
    if _wants_json(sys.argv[1:] if given is None else given):
        with contextlib.suppress(OSError):  # it may be standard output that the error is of
            print_json({"error": {"kind": kind, "text": text, "exit_code": code}})
    typer.echo(f"error: {text}", err=True)


def _wants_json(given: Sequence[str]) -> bool:
    return "--json" in given or "--format=json" in given or ("--format", "json") in pairwise(given)


def _app(commands: Sequence[Callable[..., None]]) -> typer.Typer:
    made = typer.Typer(
        cls=Commands,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(root)
    for command in commands:
        made.command(cls=Command, context_settings={"allow_extra_args": True})(command)
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


def _is_nowhere() -> bool:
    """Whether the current directory has been removed."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _short_of(e: Exception) -> str | None:
    """What the machine lacks where no call of the system says it; None if it is something else."""
    if isinstance(e, MemoryError):
        return "there is not enough memory; close other programs, or give --threads 1"
    if "start new thread" in str(e):
        return "no more threads can be started; give --threads 1, or allow more (`ulimit -u`)"
    if isinstance(e, ImportError):
        return f"{one_line(str(e))}; there is too little memory, or it is to be installed again"
    return None


def main() -> None:
    """The `quantkit` command. Exit code 1 for errors, 2 for wrong usage, 130 for Ctrl-C."""
    from quantkit.errors import PlanError, QuantkitError

    _open_all_three()
    os.umask(os.umask(0o077) | 0o002)  # nothing that everybody may write
    _write_any_text()
    gc.set_threshold(100_000)  # imports and headers are many small objects, and hardly a cycle
    named = [c for c in COMMANDS if [c.__name__] == sys.argv[1:2]]
    try:
        (_app(named) if named else app)()  # typer looks long at every command that an app has
    except PlanError as e:
        traceback.print_exc()
        text = f"{e}; this is a bug in quantkit, please report it: {ISSUES}"
        _say_error(text, kind="PlanError", code=1)
        sys.exit(1)
    except QuantkitError as e:
        _say_error(str(e), kind=type(e).__name__, code=1)
        sys.exit(1)
    except OSError as e:
        where = one_line(str(e.filename or "input or output"))
        text = f"{where}: {e.strerror or one_line(str(e))}"
        if not e.filename and _is_nowhere():
            text = "the current directory is not there any more; change to one that is"
        elif e.errno in _FULL:
            import tempfile

            text += f"; make room there and in {tempfile.gettempdir()}, and run it again"
        elif e.errno in (errno.EMFILE, errno.ENFILE):
            text += "; allow more (`ulimit -n 4096`) and run it again"
        _say_error(text, kind="OSError", code=1)
        sys.exit(1)
    except (MemoryError, RuntimeError, ImportError) as e:
        if (lack := _short_of(e)) is None:
            raise
        _say_error(lack, kind=type(e).__name__, code=1)
        sys.exit(1)
    except ValueError as e:
        from quant_types import KernelError

        if not isinstance(e, KernelError):
            raise
        _say_error(one_line(str(e)), kind=type(e).__name__, code=1)
        sys.exit(1)
    finally:
        gc.freeze()  # the process ends: nothing is to be looked for


if __name__ == "__main__":
    main()
