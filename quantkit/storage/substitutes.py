"""Files that lie where another should: what they are, and what to do about it."""

from __future__ import annotations

import re

_POINTER = b"version https://git-lfs"
_PIECE = re.compile(r"(?P<whole>.+\.gguf)\.(part)?(?P<no>\d+)of(?P<count>\d+)")


def pointer(data: bytes) -> str | None:
    """That a file's first bytes are a pointer of git-lfs."""
    if not data.startswith(_POINTER):
        return None
    return "a git-lfs pointer, not the file itself; get it with `git lfs pull` or `hf download`"


def piece(name: str) -> str | None:
    """That a file is one plain piece of another, by its name (`model.gguf.part1of2`)."""
    match = _PIECE.fullmatch(name)
    if not match:
        return None
    names = " ".join(
        name.replace(f"{match['no']}of", f"{i + 1}of") for i in range(int(match["count"]))
    )
    return f"a piece of {match['whole']}; join them: cat {names} > {match['whole']}"
