"""Mutated headers of GGUF files, before `verify` and before the real llama.cpp: `python -m
tests.attacks.headers N [SEED [container]]`.

`verify` has two steps: what it knows itself (`structure`), and what llama.cpp says that is asked to
load the headers alone. The judge of both is llama.cpp as it is used: it opens the file
(`gguf_init_from_file`), loads it with its weights, splits a text and computes with it. A file that
is good here and refused there, or that ends the process there, is dangerous: it is written to
`header-N.gguf`, and the exit code is 1. The other direction is counted by kind. With `container`,
opening the file is all that is compared, which goes some ten times faster.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.errors import LlamaError, QuantkitError
from quantkit.gguf.splits import Splits, split_path
from quantkit.jobs import convert
from quantkit.llama import completion, llama_cpp
from quantkit.source.gguf_set import open_gguf_set
from quantkit.verification import structure
from tests import checkpoints
from tests.attacks.header_changes import mutated
from tests.attacks.header_parts import Parts, parts

# of each vocabulary and kind of layer one; the last in two files
CASES = ("mixtral-4x", "mixtral-4x-spm-pad", "qwen3moe-ct-fp8-block", "gemma4-e2b", "gpt-oss",
         "deepseek-v32-mtp", "lfm2-idxs", "falcon-h1-norm", "mixtral-2x-12l")  # fmt: skip
BATCH = 128
SECONDS = 20  # of one file
Asked = Callable[[Path], str]
_CONTAINER = "container: "


class _Init(ctypes.Structure):
    """`gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def ours(path: Path) -> str:
    """Why `verify` calls a file bad before it asks llama.cpp; empty if it does not."""
    try:
        return "; ".join(structure.faults(*open_gguf_set(path)))
    except QuantkitError as e:
        return str(e)


def container(path: Path) -> str:
    """Why `gguf_init_from_file` refuses it."""
    lib = llama_cpp.library()
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = ctypes.c_char_p, _Init
    lib.gguf_free.argtypes = (ctypes.c_void_p,)
    lib.llama_log_set(llama_cpp._LISTENER, None)
    llama_cpp._said.clear()
    made = lib.gguf_init_from_file(str(path).encode(), _Init(True, None))
    lib.gguf_free(made)
    return "" if made else _CONTAINER + llama_cpp._reason()


def asked(path: Path) -> str:
    """What llama.cpp says to the headers, as `verify` asks it."""
    try:
        llama_cpp.check_loads(path, "Hello", True)
    except LlamaError as e:
        return str(e)
    return ""


def used(path: Path) -> str:
    """What it says to the file, all of it."""
    if refused := container(path):
        return refused
    try:
        with llama_cpp.Llama(path, 64, threads=1) as model:
            completion.complete(model, "Hello", 2)
    except LlamaError as e:
        # a prompt of no tokens, and weights that are zeros
        return "" if "tokens and" in str(e) or "computes NaN" in str(e) else str(e)
    return ""


def apart(paths: Sequence[Path], ask: Asked) -> Iterator[str]:
    """The answers about many files, in a child that a file may end: another one goes on."""
    at = 0
    while at < len(paths):
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as said:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # threads of ours that wait
                child = os.fork()
            if not child:
                os.close(reader)
                _answer(paths[at:], ask, writer, said.fileno())
            os.close(writer)
            with os.fdopen(reader, "rb") as answers:
                for line in answers:
                    at += 1
                    yield line.decode("utf-8", "replace").strip()
            _, status = os.waitpid(child, 0)
            if status:
                said.seek(0)
                lines = said.read().decode("utf-8", "replace").splitlines()
                found = [t for t in lines if "GGML_" in t or "what()" in t]
                yield f"ended ({status}): {' '.join(found)[-300:]}"
                at += 1


def _answer(paths: Sequence[Path], ask: Asked, out: int, said: int) -> None:
    os.environ["GGML_NO_BACKTRACE"] = "1"
    faulthandler.disable()
    for stream in (1, 2):
        os.dup2(said, stream)
    for path in paths:
        signal.alarm(SECONDS)
        os.ftruncate(said, 0)
        os.write(out, " ".join(ask(path).split()).encode() + b"\n")
    os._exit(0)


@dataclass
class Found:
    """What came of the files: how many were good or bad to both; kinds of complaints, and how many
    files each, where `verify` had to ask (`asked`), where it is wrong (`dangerous`) and where it is
    stricter than llama.cpp (`strict`)."""

    good: int = 0
    bad: int = 0
    refused_there: int = 0  # by gguf_init_from_file
    asked: Counter[str] = field(default_factory=Counter)
    dangerous: Counter[str] = field(default_factory=Counter)
    strict: Counter[str] = field(default_factory=Counter)

    @property
    def n(self) -> int:
        return self.good + self.bad + sum(map(Counter.total, (self.dangerous, self.strict)))

    def take(self, here: str, told: str, there: str, done: str) -> bool:
        """Count a file by what was said of it; whether it is a dangerous one."""
        container = there.startswith(_CONTAINER)
        self.refused_there += container
        if not there:
            self.good += not (here or told)
            if here or told:
                self.strict[_kind_of(here or f"asked: {told}")] += 1
        elif not here and (container or not told):
            self.dangerous[f"{done}: {_kind_of(there)}"] += 1
            return True
        else:
            self.bad += 1
            if not here:
                self.asked[_kind_of(told)] += 1
        return False


def _kind_of(text: str) -> str:
    """A complaint without what is particular to one file."""
    text = re.sub(r"\S*/\S*\.gguf", "FILE", text.split("; llama_model_load_from_file_impl")[0])
    text = re.sub(r"blk\.\d+\.[\w.]+|'[^']*'", "X", text)
    return re.sub(r"-?\d+(\.\d+)?", "N", text)[:140]


def make_seeds(parent: Path, cases: Sequence[str] = CASES) -> list[list[Parts]]:
    """The headers of the cases, converted; the last of them in two files."""
    seeds = []
    for case in cases:
        splits = Splits(max_tensors=60) if case == CASES[-1] else Splits()
        source = checkpoints.from_recipe(case, parent / case)
        made = convert(source, parent / f"{case}.gguf", splits=splits)
        seeds.append([parts(file.path) for file in made.files])
    return seeds


def run(
    seeds: Sequence[list[Parts]],
    n: int,
    seed: int,
    keep: Path | None = None,
    judge: Asked = used,
) -> Found:
    """Judge `n` mutated headers, a fair share of each seed."""
    rng, found = random.Random(seed), Found()
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    for first in range(0, n, BATCH):
        with tempfile.TemporaryDirectory(dir=root) as parent:
            paths, done = [], []
            for i in range(first, min(first + BATCH, n)):
                files = [*seeds[i % len(seeds)]]
                which = rng.randrange(len(files))
                files[which] = mutated(files[which], rng)
                done.append(f"{'+'.join(files[which].done)}")
                names = [Path(parent) / f"{i}.gguf"]
                if len(files) > 1:
                    names = [split_path(names[0], k, len(files)) for k in range(len(files))]
                for p, path in zip(files, names, strict=True):
                    p.write(path)
                paths.append(names[0])
            here = [ours(path) for path in paths]
            good = [p for p, text in zip(paths, here, strict=True) if not text and judge is used]
            told = dict(zip(good, apart(good, asked), strict=True))
            for path, *said in zip(paths, here, apart(paths, judge), done, strict=True):
                if found.take(said[0], told.get(path, ""), *said[1:]) and keep is not None:
                    name = f"header-{found.dangerous.total()}.gguf"
                    (keep / name).write_bytes(path.read_bytes())
    return found


def main() -> None:
    """Judge so many."""
    n, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 17
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as parent:
        judge = container if sys.argv[3:] else used
        found = run(make_seeds(Path(parent)), n, seed, Path(), judge)
    print(
        f"seed {seed}: {found.n} files in {time.monotonic() - began:.0f} s: {found.good} good and "
        f"{found.bad} bad to both, {found.refused_there} refused by gguf_init_from_file"
    )
    for what in ("asked", "strict", "dangerous"):
        counter: Counter[str] = getattr(found, what)
        print(f"{what}: {counter.total()}")
        for kind, count in counter.most_common(60):
            print(f"{count:8} {kind}")
    sys.exit(bool(found.dangerous))


if __name__ == "__main__":
    main()
