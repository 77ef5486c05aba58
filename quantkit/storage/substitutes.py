"""Files that lie where another should: what they are, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

from quantkit.errors import CorruptFile

_POINTER = b"version https://git-lfs"
_PAGE = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE)
_BEFORE_GGUF = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml.c's magics of 2023, as they are stored
# `m.gguf.part1of2`, `m.gguf.1of2`, `m.part1of2.gguf`
_COUNTED = re.compile(
    r"(?P<stem>.+?)(?P<end>\.gguf|\.safetensors)?[.-](part-?)?(?P<no>\d+)of(?P<count>\d{1,3})"
    r"(?P<late>\.gguf|\.safetensors)?"
)
# `m.gguf-split-a`, `m.gguf.part-aa`, `m.gguf.aa`, `m.gguf.001`: how many there are is not said
_ORDERED = re.compile(
    r"(?P<whole>.+\.(gguf|safetensors))(?P<sign>[.-](split|part)-?|\.)([a-z]{1,2}|\d{1,3})"
)


# how files are named while they are written: here, by the Hub's client, by browsers and wget
UNFINISHED = (".partial", ".incomplete", ".part", ".crdownload", ".download", ".aria2")


def check_finished(path: object) -> None:
    """Raises CorruptFile where a file on this machine is not whole yet, though it may have its
    size."""
    if isinstance(path, Path) and (what := _unfinished(path)):
        raise CorruptFile(f"{path}: {what}")


def _unfinished(path: Path) -> str | None:
    """That it is not whole, by its name, or by what aria2 keeps beside one that it is
    downloading."""
    if path.name.endswith(UNFINISHED):
        return "not whole yet, by its name: it is being written or downloaded; finish that first"
    beside = path.with_name(f"{path.name}.aria2")
    if beside.exists():
        return (
            f"not whole yet: {beside.name} lies beside it, which aria2 removes when a download is "
            "done; finish it, or download it again"
        )
    return None


def substitute(data: bytes) -> str | None:
    """What a file's first bytes are, where they are no weights and no JSON: a pointer of git-lfs, a
    web page."""
    if data.startswith(_POINTER):
        return "a git-lfs pointer, not the file itself; get it with `git lfs pull` or `hf download`"
    if _PAGE.match(data):
        return (
            "a web page, not the file itself; get it with `hf download` (a gated model asks for a "
            "login first)"
        )
    return None


def no_gguf(data: bytes, name: str) -> str | None:
    """What a file that is no GGUF file is, by its first bytes and its name."""
    if what := substitute(data) or piece(name):
        return what
    if data[:4] in _BEFORE_GGUF:
        return "written before there was GGUF (2023); convert the model that it was made from"
    if not data:
        return "empty; download it again"
    return None


def of_checkpoint(name: str) -> bool:
    """Whether a file is a part of a checkpoint, by its name."""
    return bool(re.search(r"\.(safetensors|bin|json|model|pth?)$", name))


def piece(name: str) -> str | None:
    """That a file is one plain piece of another, by its name (`model.gguf.part1of2`)."""
    m = _COUNTED.fullmatch(name)
    if m and bool(m["end"]) != bool(m["late"]) and 0 < int(m["no"]) <= int(m["count"]):
        whole = f"{m['stem']}{m['end'] or m['late']}"
        at, end = m.span("no")
        width = end - at if name[at] == "0" else 0
        numbers = (str(i + 1).zfill(width) for i in range(int(m["count"])))
        names = " ".join(name[:at] + number + name[end:] for number in numbers)
        return f"a piece of {whole}; join them: cat {names} > {whole}"
    m = _ORDERED.fullmatch(name)
    if m:
        whole = m["whole"]
        return f"a piece of {whole}; join them in order: cat {whole}{m['sign']}* > {whole}"
    return None
