"""Kernels as machine code: those that come with the package, or else compiled once a machine, kept
on disk, and loaded without the compiler.

A kernel is a C function. `quant_types.lanes` has its source; it is compiled in a process of its own
into an object file, so that a run that finds it in the cache is spared Numba.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quant_types import isolated, shipped
from quant_types.errors import CacheFull, KernelError

SYMBOL = "kernel"  # of the function in its object file
MEMORY = 1 << 18  # bytes that a kernel is given to work in
OVERFLOW = -2  # what a kernel returns where errors overflow float32
LINE = 64  # bytes of a cache line, on which they begin
_PACKAGE = Path(__file__).parent
_SUM = 32  # bytes of SHA-256 before the object code
_SECONDS = {"iq2": 5.0, "iq3": 4.0, "k_min": 4.0, "iq1": 3.0, "k_symmetric": 2.5}  # to compile
_WITHOUT = 'NumPy does the same, slower: engine="array", or no numba installed'
# how Numba is told to leave optimizing to the whole kernel, where LLVM sees more and is asked once
NUMBA = {"NUMBA_OPT": "0", "NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING": "1"}

_I, _P = ctypes.c_int64, ctypes.c_void_p
# (x, weights, kind, out, bytes, memory, grid): x float32, or the bits of bfloat16 or float16;
# memory `MEMORY` bytes, on a cache line; grid a table of `quant_types.grids`, or nothing. Returns
# -1, or the index of a tile with NaN, infinity or a weight past the range of float16, or
# `OVERFLOW`.
PLAIN = ctypes.CFUNCTYPE(_I, _P, _I, _I, _P, _I, _P, _P)
# and (table, its rows, its columns, rows, count): importance float32, and the row of it that each
# row of x uses, int64
WEIGHTED = ctypes.CFUNCTYPE(_I, _P, _I, _I, _P, _I, _P, _P, _P, _I, _I, _P, _I)

Kernel = Callable[..., int]
_loading: dict[str, threading.RLock] = {}
_loaded: dict[str, Kernel] = {}
_trial: dict[str, Kernel] = {}  # while it is proven, by the thread that holds its lock
_guard = threading.Lock()


def load(name: str) -> Kernel:
    """The kernel of that name, such as "k_min.q4_k_importance": called with addresses and sizes as
    `PLAIN` or, for importance, `WEIGHTED` say. It holds no GIL.

    Raises:
        KernelError: it could not be compiled.
    """
    if name not in _loaded:
        with _guard:
            lock = _loading.setdefault(name, threading.RLock())
        with lock:
            if name in _trial:
                return _trial[name]
            if name not in _loaded:
                _loaded[name] = _shipped(name) or _linked(_object(name), name)
    return _loaded[name]


@functools.cache
def available() -> bool:
    """Whether there are kernels for this processor, or what compiles them. A person is told once
    where there are not."""
    if shipped.level() or find_spec("numba") is not None:
        return True
    print(
        "note: there are no kernels for this processor, NumPy does the work and is many times "
        "slower; pip install 'quantkit-gguf[compile]' compiles them",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return False


def use(name: str, code: bytes) -> None:
    """Have a kernel's object code be what `load` gives."""
    _loaded[name] = _linked(code, name)


def prepare(names: Iterable[str], threads: int) -> None:
    """Load kernels; those that this machine has not compiled yet, `threads` at a time.

    Raises:
        KernelError: one could not be compiled.
    """
    wanted = sorted(set(names))
    missing = [name for name in wanted if _is_missing(name)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_compile, _batches(missing, threads)))
        list(pool.map(load, wanted))  # those that came with the package are proven here


def _is_missing(name: str) -> bool:
    """Whether a kernel has to be compiled first."""
    if name in _loaded or shipped.find(name, _prototype(name)) is not None:
        return False
    return _kept(path_of(name, cache_dir())) is None


def _batches(names: list[str], threads: int) -> list[list[str]]:
    """What each process compiles, one kernel after another: as many as there are threads, with
    about as much to do. Each starts Numba once, and has most of its work on a kernel with
    importance done by that without, which is in the same."""
    if len(names) <= threads:
        return [[name] for name in names]
    pairs: dict[str, list[str]] = {}
    for name in names:
        pairs.setdefault(name.removesuffix("_importance"), []).append(name)
    batches: list[list[str]] = [[] for _ in range(threads)]
    for pair in sorted(pairs.values(), key=_seconds, reverse=True):
        min(batches, key=_seconds).extend(pair)
    return [batch for batch in batches if batch]


def _seconds(names: list[str]) -> float:
    """What kernels take to compile, about."""
    return sum(_SECONDS.get(name.split(".")[0], 1.5) for name in names)


def _prototype(name: str) -> Any:
    return WEIGHTED if name.endswith("_importance") else PLAIN


def _shipped(name: str) -> Kernel | None:
    """A kernel that came with the package, proven on this machine; None without one."""
    from quant_types import proof

    found: Kernel | None = shipped.find(name, _prototype(name))
    if found is None:
        return None
    _trial[name] = found
    try:
        proof.check(name)
    except RuntimeError as e:
        print(f"note: the kernel {name} is not used ({e})", file=sys.stderr, flush=True)
        return None
    finally:
        del _trial[name]
    return found


def _object(name: str) -> bytes:
    """A kernel's object code, from the cache or else from the compiler."""
    path = path_of(name, cache_dir())
    found = _kept(path)
    if found is None:
        _compile([name])
        found = _kept(path)
    if found is None:
        raise KernelError(f"the compiled kernel {name} cannot be read from {path.parent}")
    return found


def _kept(path: Path) -> bytes | None:
    """The object code in a file, if it is there, ours and whole."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(path, flags | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            data = file.read()
    except OSError:
        return None
    code = data[_SUM:]
    return code if code and hashlib.sha256(code).digest() == data[:_SUM] else None


def keep(path: Path, code: bytes) -> None:
    """Write object code to a file of the cache, whole or not at all.

    Raises:
        CacheFull: there is no room for it.
    """
    try:
        fd, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(partial, path)
        except OSError:
            os.unlink(partial)
            raise
    except OSError as e:
        if e.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise CacheFull(path.parent) from None
        raise


def path_of(name: str, folder: Path) -> Path:
    """Where a directory has a kernel's object code."""
    return folder / f"{name}.kernel"


def _compile(names: list[str]) -> None:
    """Have a process of its own compile kernels, one after another, into the cache."""
    if not sys.executable:
        raise KernelError(f"there is no Python to compile with; {_WITHOUT}")
    _announce()
    folder = cache_dir()
    done = subprocess.run(
        isolated.command("quant_types.lanes", str(folder), *names),
        cwd=isolated.DIRECTORY,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        if said.startswith(f"{CacheFull.__module__}.{CacheFull.__name__}:"):
            raise CacheFull(folder)
        left = [name for name in names if _kept(path_of(name, folder)) is None]
        name = left[0] if left else names[-1]
        raise KernelError(f"the kernel {name} could not be compiled ({said}); {_WITHOUT}")


_announced = False


def _announce() -> None:
    """Tell a person at a terminal, once, why the first call takes seconds."""
    global _announced
    with _guard:
        if not _announced and sys.stderr.isatty():
            print("compiling kernels for this CPU, once", file=sys.stderr, flush=True)
        _announced = True


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@functools.cache
def target() -> tuple[str, str]:
    """The processor that kernels are compiled for, as LLVM knows it: its name and its features.

    AVX-512 at its full width: left to itself, LLVM uses half of it.
    """
    llvm = _llvm()
    features = llvm.get_host_cpu_features()
    narrow = "" if not features.get("avx512f") else ",-prefer-256-bit"
    return llvm.get_host_cpu_name(), features.flatten() + narrow


def machine() -> Any:
    """LLVM's target machine for code that is loaded into this process."""
    llvm = _llvm()
    cpu, features = target()
    triple = llvm.get_process_triple()
    reloc = "static" if triple.startswith(("x86", "i386")) else "default"
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu, features, opt=3, reloc=reloc, codemodel="jitdefault", jit=True
    )


def _linked(code: bytes, name: str) -> Kernel:
    """Object code brought into this process; each has a linker of its own, that knows no other."""
    llvm = _llvm()
    linker = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine())
    linker.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
    linker.finalize_object()
    found: Any = _prototype(name)(linker.get_function_address(SYMBOL))
    found.linker = linker  # lives as long as the function does
    return found  # type: ignore[no-any-return]


def cache_key(package: Path) -> str:
    """Digest of the compiler's version, the processor, and every source file that a kernel may draw
    on."""
    compiler = (sys.version, version("numba"), version("llvmlite"), *target())
    text = "\0".join((*compiler, shipped.sources_digest(package)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_name() -> str:
    """The cache's directory for this source as it is now."""
    return f"kernels-{cache_key(_PACKAGE)}"


@functools.cache
def cache_dir() -> Path:
    """Where this source's kernels are kept: `$QUANTKIT_CACHE_DIR`, else the user's cache.

    What lies there is run, so the directory has to be this user's and nobody else may write to it;
    else kernels are compiled for this process alone, and that is said.
    """
    given = os.environ.get("QUANTKIT_CACHE_DIR")
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = (Path(given) if given else Path(user).expanduser() / "quantkit").absolute()
        folder /= folder_name()
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if (reason := _unsafe(folder)) is None:
            with tempfile.TemporaryFile(dir=folder):
                return folder
        print(
            f"note: the kernel cache {ascii(str(folder))[1:-1]} is not used ({reason}); "
            "kernels are compiled for this run alone",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    except (OSError, RuntimeError):  # not writable, or no home
        pass
    folder = Path(tempfile.mkdtemp(prefix="quantkit-kernels-"))  # made 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_ours(found: os.stat_result) -> bool:
    """Whether a file or directory is this user's, and no other may write to it."""
    if not hasattr(os, "geteuid"):  # Windows: what a profile holds is its user's
        return True
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _unsafe(folder: Path) -> str | None:
    """Why others could put code into `folder`; None if they cannot."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "it is a link"
    return None if _is_ours(found) else "others may write to it"
