"""The real llama.cpp as the judge of files: each is loaded and run in a process of its own.

`python -m tests.real_loader` reads paths, a line each, and answers each with a line: nothing, or
why the file is no good. llama.cpp ends the process that it is in where it asserts something.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

TOKENS = 8
SECONDS = 10  # more than a small model takes


class Judge:
    """A process that holds llama.cpp's code, and forks for every file."""

    def __enter__(self) -> Judge:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.real_loader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "GGML_NO_BACKTRACE": "1",
            },
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.communicate()

    def complaint(self, path: Path) -> str:
        """Why llama.cpp does not load the file, or what is wrong with its logits; empty if it
        completes."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{path}\n")
        self._server.stdin.flush()
        return self._server.stdout.readline().strip()


def _predicts(path: Path) -> str:
    """What llama.cpp says to layers that predict further tokens, in a context of their own."""
    from quantkit.llama import llama_cpp

    lib = llama_cpp.library()
    of_model, of_context = lib.llama_model_default_params(), lib.llama_context_default_params()
    of_model.load_mtp = True
    model = lib.llama_model_load_from_file(str(path).encode(), of_model)
    if not model:
        return "llama.cpp does not load it"
    of_context.n_ctx = of_context.n_batch = of_context.n_ubatch = 64
    of_context.n_threads = of_context.n_threads_batch = of_context.ctx_type = 1
    return "" if lib.llama_init_from_model(model, of_context) else "llama.cpp does not run it"


def _names(path: Path) -> list[str]:
    """Of the tensors of a file, or of all splits of which it is the first."""
    from quantkit.errors import SourceError
    from quantkit.gguf.container import read_header
    from quantkit.source.gguf_set import open_gguf_set

    try:
        return [t.name for t in open_gguf_set(path)[1]]
    except SourceError:  # one split that is judged alone, or a file that is no good
        return [t.name for t in read_header(path).tensors]


def _run(path: Path) -> str:
    from quantkit.errors import LlamaError
    from quantkit.llama.llama_cpp import Llama

    try:
        if not any("blk.0." in name for name in _names(path)):
            return _predicts(path)  # layers that predict alone: run beside the model they are of
        with Llama(path, 64, threads=1) as model:
            ids = np.arange(1, TOKENS + 1, dtype=np.int32) % model.n_vocab
            if model.embeds:
                return "" if np.isfinite(model.embed(ids)).all() else "a vector that is not finite"
            if model.translates:
                ids = np.array([model.encode(ids)], np.int32)
            for position in (0, len(ids)):  # a prompt, and what follows it
                logits = model.decode(ids[None], 0, None, position)
                if not np.isfinite(logits).all():
                    return "logits that are not finite"
    except LlamaError as e:
        return str(e)
    return ""


def main() -> None:
    """Judge the files that stdin names."""
    from quantkit.llama.llama_cpp import library

    library()
    for line in sys.stdin:
        path = Path(line.strip())
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if not child:
                signal.alarm(SECONDS)
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                answer = _run(path).encode()
                os.write(said.fileno(), b"\0" + answer)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            said.seek(0)
            log, _, answer = said.read().rpartition(b"\0")
        text = answer.decode("utf-8", "replace")
        if status:
            lines = (log or answer).decode("utf-8", "replace").splitlines()
            found = [t for t in lines if "GGML_" in t or "terminate" in t or "what()" in t]
            text = f"killed ({status}): {' '.join(found)}"
        print(" ".join(text.split()), flush=True)


if __name__ == "__main__":
    main()
