"""Kernels that come with the package: a shared library, built with a wheel for one platform
(`quant_types.lanes.library`). It holds each kernel for several levels of processors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "ready"
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}
DIGESTS = "digests.json"  # what was compiled, and what it has to make


def symbol(name: str, level: int) -> str:
    """The name of a kernel in the library: `v4_k_min_q4_k` of "k_min.q4_k"."""
    return f"v{level}_{name.replace('.', '_')}"


def sources_digest(package: Path) -> str:
    """Digest of every source that a kernel is made of."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(
            str(path.relative_to(package).as_posix()).encode() + b"\0" + path.read_bytes()
        )
    return digest.hexdigest()


@functools.cache
def level() -> int:
    """The level of this processor that the package has kernels for; 0 where it has none."""
    library = _library()
    if library is None:
        return 0
    library.level.restype = ctypes.c_int64
    return int(library.level())


def find(name: str, prototype: Callable[..., Any]) -> Any:
    """The kernel of that name as a C function of `prototype`; None where the package has none for
    this processor."""
    library = _library()
    if library is None or not level():
        return None
    try:
        return prototype((symbol(name, level()), library))
    except AttributeError:  # a kernel that is newer than the library
        return None


def expected(name: str) -> str | None:
    """SHA-256 of what the array engine makes of the kernel's proof, as found when it was built."""
    found = _digests()["proofs"].get(name)
    return str(found) if found else None


@functools.cache
def _digests() -> Any:
    try:
        return json.loads((FOLDER / DIGESTS).read_bytes())
    except OSError:
        return {"sources": "", "proofs": {}}


@functools.cache
def _library() -> Any:
    """The library, if there is one, of these very sources, that this system can load."""
    path = FOLDER / f"kernels{SUFFIX.get(sys.platform, '.so')}"
    if not path.is_file() or _digests()["sources"] != sources_digest(Path(__file__).parent):
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # of another platform
        return None
