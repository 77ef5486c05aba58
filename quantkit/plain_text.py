"""Text from outside as it may be shown: no cursor moves, no word hides, no line is forged."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

# control characters, what turns the direction of text, line separators, halves of characters, tags;
# not the joiners of scripts and emoji
_UNSEEN = (
    "\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_LINE = re.compile(f"[{_UNSEEN}]")
_IN_TEXT = re.compile(rf"(?![\n\t])[{_UNSEEN}]")
LONGEST = 4000  # characters of an error


def is_utf8(text: str) -> bool:
    """Whether a text has no halves of characters, which UTF-8 cannot write."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def first_of(names: Sequence[str]) -> str:
    """The first three of some names, and a sign that there are more."""
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def one_line(text: str, longest: int = 0) -> str:
    """The text on one line, what cannot be seen written as JSON writes it (`\\u001b`); of
    at most `longest` characters, if a length is given."""
    if longest and len(text) > longest:
        half = longest // 2 - 3
        text = f"{text[:half]} ... {text[-half:]}"
    return text if text.isascii() and text.isprintable() else _IN_LINE.sub(_written, text)


def lines(text: str) -> str:
    """The same for a text of several lines, which stay."""
    return _IN_TEXT.sub(_written, text)


def _written(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code in (9, 10, 13):
        return {9: "\\t", 10: "\\n", 13: "\\r"}[code]
    # JSON's spelling, so that JSON that is shown stays the same JSON
    if code < 1 << 16:
        return f"\\u{code:04x}"
    return "".join(f"\\u{half:04x}" for half in struct.unpack(">2H", match[0].encode("utf-16-be")))
