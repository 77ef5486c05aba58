"""What the values of options mean, and what a shell offers for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from quantkit.calibration.imatrix import Imatrix

_T = TypeVar("_T")


def complete_type(incomplete: str) -> list[tuple[str, str]]:
    """The types, and sets of types, that a shell offers for what was typed, each with its use."""
    from quantkit.recipes.file_types import RECIPES, SETS

    known = {r.name: r.use_case for r in RECIPES} | {s: ", ".join(SETS[s]) for s in SETS}
    *before, last = incomplete.split(",")
    begun, typed_small = "".join(f"{kind}," for kind in before), last == last.lower()
    return [
        (begun + (name.lower() if last and typed_small else name), words)
        for name, words in known.items()
        if name.lower().startswith(last.lower())
    ]


def names(text: str | list[str]) -> list[str]:
    """The parts of lists with commas or spaces."""
    parts = [text] if isinstance(text, str) else text
    return [name for part in parts for name in re.split(r"[\s,]+", part) if name]


def named(option: str, text: str | None, parse: Callable[[str], _T]) -> _T | None:
    """What an option's text means. Raises UsageError, which names the option."""
    from quantkit.errors import UsageError

    try:
        return None if text is None else parse(text)
    except UsageError as e:
        raise UsageError(f"{option}: {e}") from None


def choice(option: str, text: str, known: Sequence[str]) -> str:
    """One of a few words. Raises UsageError, which names the option."""
    from quantkit.errors import UsageError

    if text.lower() not in known:
        raise UsageError(f"{option}: {text!r} is none of {', '.join(known)}")
    return text.lower()


def size(option: str, text: str | None) -> int | None:
    """Bytes. Raises UsageError, which names the option."""
    from quantkit.gguf.splits import parse_size

    return named(option, text, parse_size)


def numbers(option: str, text: str | None) -> tuple[int, ...]:
    """A list such as 3,7-9. Raises UsageError, which names the option."""
    from quantkit.gguf.splits import parse_numbers

    return named(option, text, parse_numbers) or ()


def read_imatrix(
    path: str | None, include: list[str] | None = None, exclude: list[str] | None = None
) -> Imatrix | None:
    """The importance matrix of `--imatrix`, as far as it is to be used."""
    if path is None:
        return None
    from quantkit.calibration.imatrix import read_imatrix, selected

    return selected(read_imatrix(path), include or (), exclude or ())


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Raises UsageError."""
    from quantkit.errors import UsageError

    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise UsageError(f"{path}: cannot be read ({why})") from None
