"""Whether a split is the same at every character, and not only in a text that shows what the known
ones do differently.

A pattern may leave out letters that hardly any text has: it would be taken for a known one, and
those letters be cut otherwise. A split that is spelled as a known one is it; any other is tried at
every character, among letters, digits, signs and ends of lines.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from quantkit.tokenizer.pre_tokenizer_patterns import GPT2

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

PART = 2000  # characters that are tried at once
_EACH = 16  # of ideographs and syllables, thousands in a row that no property tells apart
_ALIKE = ((0x3400, 0x4DB5), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x20000, 0x2A6D6))
_LITERAL = re.compile(
    r"[^\x00-\x7f]|\\u([0-9A-Fa-f]{4})|\\x\{([0-9A-Fa-f]{1,6})\}|\\x([0-9A-Fa-f]{2})"
)


# a character among letters of all kinds (big, small, without case, of none), digits, signs, ends
_PLACES = (
    "a_1 __\n!_b ____1_/\n\r_A's A_b _Ab a_B A_A_a__b a_a_A +_B $_ __B 1_Ab 1__a1_A "
    "\u05d0_a_\u05d0A \u4e2d_a_\u4e2d1 "
)


def around(c: str) -> str:
    """A text with a character in every place where a split may treat it in a way of its own."""
    return _PLACES.replace("_", c)


def every_character(step: PreTokenizer | None) -> Iterator[str]:
    """The characters that are tried, in parts: those that Unicode has had since 2002 and whose kind
    has not changed (the tables of the engines are of different years), and the ends of every range
    that the step itself states, with their neighbours."""
    stated = {
        chr(code + d)
        for found in _LITERAL.finditer(json.dumps(_state(step), ensure_ascii=False))
        for code in [int(next(filter(None, found.groups()), "0"), 16) or ord(found[0][0])]
        for d in (-1, 0, 1)
        if 0 < code + d < 0xD800 or 0xE000 <= code + d < 0x110000
    }
    characters = _known() + "".join(sorted(stated))
    for i in range(0, len(characters), PART):
        yield characters[i : i + PART]


@lru_cache(maxsize=1)
def _known() -> str:
    old = unicodedata.ucd_3_2_0
    skipped = {
        code for first, last in _ALIKE for code in range(first + 1, last) if (code - first) % _EACH
    }
    return "".join(
        chr(code)
        for code in range(0x2FA20)
        if code not in skipped
        and (kind := old.category(chr(code))) not in ("Cn", "Co", "Cs")
        and kind == unicodedata.category(chr(code))
    )


def _state(step: PreTokenizer | None) -> Any:
    return None if step is None else json.loads(step.__getstate__())


def patterns_of(step: PreTokenizer | None) -> tuple[str, ...] | None:
    """The patterns that a split is spelled by, one after another; None if by something else."""
    state = _state(step)
    if not isinstance(state, dict):
        return None
    patterns: list[str] = []
    for inner in state.get("pretokenizers") or [state]:
        kind, pattern = inner.get("type"), inner.get("pattern")
        if kind == "Split" and isinstance(pattern, dict) and "Regex" in pattern:
            if (inner.get("behavior"), inner.get("invert")) != ("Isolated", False):
                return None
            patterns.append(pattern["Regex"])
        elif kind == "Digits" and inner.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif kind != "ByteLevel":
            return None
        elif inner.get("use_regex", True):
            patterns.append(GPT2)
    return tuple(patterns)
