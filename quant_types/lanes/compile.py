"""Kernels compiled at their first call, and kept on disk for as long as their source stays."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def _described(value: Any) -> str:
    """What distinguishes a value that a sub-function has in its closure."""
    if hasattr(value, "py_func"):
        return f"{value.py_func.__module__}.{value.py_func.__qualname__}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tobytes().hex()}"
    if isinstance(value, bool | int | float | np.generic):
        return f"{type(value).__name__} {value!r}"
    raise TypeError(f"no kernel may close over a {type(value).__name__}")


def inner(function: Callable[..., Any]) -> Any:
    """Decorator: a sub-function of kernels, compiled into each of them.

    Its symbol is made of its qualified name and a number that starts anew in each process. Kernels
    come from the cache of many processes, and the linker takes functions of the same symbol for
    the same: so what a factory closes over goes into the name.
    """
    cells = function.__closure__ or ()
    if cells:
        named = zip(function.__code__.co_freevars, cells, strict=True)
        text = ";".join(f"{name}={_described(cell.cell_contents)}" for name, cell in named)
        function.__qualname__ += "_" + hashlib.sha256(text.encode()).hexdigest()[:16]
    return numba.njit(**OPTIONS)(function)


_FLOATS = types.Array(types.float32, 1, "C", readonly=True, aligned=False)
_WORDS = types.Array(types.uint16, 1, "C", readonly=True, aligned=False)
_OUT = types.Array(types.uint8, 1, "C")
_TABLE = types.Array(types.float32, 2, "C", readonly=True)
_ROWS = types.Array(types.int64, 1, "A", readonly=True)
PLAIN = types.int64(_FLOATS, _WORDS, types.int64, _OUT)
WEIGHTED = types.int64(_FLOATS, _WORDS, types.int64, _TABLE, _ROWS, _OUT)

_PACKAGE = Path(__file__).parents[1]  # quant_types: the tables of the searches are there
_lock = threading.Lock()
_announced = False


def source_digest(package: Path) -> str:
    """Digest of the compiler's version and of every source file that a kernel may draw on."""
    digest = hashlib.sha256(f"{sys.version}\0{numba.__version__}".encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def cache_dir() -> Path:
    """Where this source's kernels are kept: `$QUANTKIT_CACHE_DIR`, else the user's cache.

    Numba does not see a change in another file, so each state of the sources has a folder.
    """
    given = os.environ.get("QUANTKIT_CACHE_DIR")
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(given) if given else Path(user).expanduser() / "quantkit"
        folder /= f"kernels-{source_digest(_PACKAGE)}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # not writable, or no home: for this process alone
        folder = Path(tempfile.mkdtemp(prefix="quantkit-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder


def _announce(function: Callable[..., Any]) -> None:
    """Tell a person at a terminal, once, why the first call takes seconds."""
    global _announced
    known = any(cache_dir().rglob(f"*.{function.__name__}-*.nbi"))
    if not known and not _announced and sys.stderr.isatty():
        _announced = True
        print("compiling kernels for this CPU, once", file=sys.stderr, flush=True)


def _compile(function: Callable[..., int], signature: Any) -> Callable[..., int]:
    _announce(function)
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_dir())  # read when a function is decorated
    try:
        compiled: Callable[..., int] = numba.njit(signature, cache=True, **OPTIONS)(function)
    finally:
        config.CACHE_DIR = before
    return compiled


def kernel(signature: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator: compile for `signature` (`PLAIN` or `WEIGHTED`) at the first call."""

    def wrap(function: Callable[..., int]) -> Callable[..., int]:
        compiled: Callable[..., int] | None = None

        @functools.wraps(function)
        def call(*args: Any) -> int:
            nonlocal compiled
            if compiled is None:
                with _lock:
                    if compiled is None:
                        compiled = _compile(function, signature)
            return compiled(*args)

        return call

    return wrap
