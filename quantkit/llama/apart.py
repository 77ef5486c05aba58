"""llama.cpp in a process of its own: it ends the one that it is in where it asserts something.

As a program it is given a file, takes a question on stdin, as JSON, and answers it so.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quant_types import isolated
from quantkit import errors
from quantkit.errors import LlamaError, QuantkitError
from quantkit.llama.completion import complete
from quantkit.llama.llama_cpp import Llama, check_loads, library

# lines of a process that llama.cpp ends, the most telling first; a stack trace follows them
_REASONS = (
    r".*GGML_(?:ASSERT|ABORT).*", r"terminate called.*|what\(\):.*", r"\w*Error\b.*|.*error:.*",
)  # fmt: skip
_SITE = "llama.cpp/"  # what its own path ends with in such a line


def ask(file: Path, question: dict[str, Any]) -> Any:
    """`{"texts": [...]}` split into token ids; or what follows `{"prompt": ..., "count": tokens,
    "context": tokens, "threads": n}`, of which the first two may be left out: it is loaded, then.
    `{"text": "", "run": whether}`: it is loaded without its weights, and nothing is answered.
    Raises LlamaMissing, LlamaError."""
    library()
    found = subprocess.run(
        isolated.command(__name__, str(file.absolute())),
        input=json.dumps(question),
        capture_output=True,
        text=True,
        errors="replace",
        cwd=isolated.DIRECTORY,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    if found.returncode != 0:
        raise LlamaError(reason(found.returncode, found.stderr))
    answer = json.loads(found.stdout)
    if "error" in answer:
        raise LlamaError(answer["error"])
    return answer["answer"]


def tell(module: str, question: dict[str, Any], file: str) -> Iterator[dict[str, Any]]:
    """What `module`, run as a program with `serve`, tells while it works: values that JSON has. It
    ends with this process, or when the iterator is closed.

    Raises what it raised, of `quantkit.errors` or an OSError; LlamaError: llama.cpp ended it, over
    `file`.
    """
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            isolated.command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            cwd=isolated.DIRECTORY,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()  # and stays open: the child ends with this process
            for line in child.stdout:
                told = json.loads(line)
                if "error" in told:
                    raise getattr(errors, told["error"], LlamaError)(told["text"])
                if "errno" in told:
                    raise OSError(told["errno"], os.strerror(told["errno"]), told["text"])
                yield told
            code = child.wait()
        finally:
            child.kill()
        if code:
            said.seek(0)
            why = reason(code, said.read().decode("utf-8", "replace"))
            raise LlamaError(f"{file}: llama.cpp ends at it: {why}")


def serve(work: Callable[[Any], Iterator[dict[str, Any]]]) -> None:
    """The other side: do the work that a line of JSON on stdin asks for, and tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asked decides
    question = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_asker, daemon=True).start()
    try:
        for told in work(question):
            print(json.dumps(told), flush=True)
    except QuantkitError as e:
        print(json.dumps({"error": type(e).__name__, "text": str(e)}), flush=True)
    except OSError as e:
        said = {"errno": e.errno, "text": str(e.filename or "output")}
        print(json.dumps(said), flush=True)
    os._exit(0)  # nothing that llama.cpp holds is to be taken apart


def _end_with_the_asker() -> None:
    """The one that asked holds stdin open for as long as it lives."""
    sys.stdin.buffer.read()
    os._exit(1)


def told(file: Path, e: LlamaError) -> str:
    """What a person is told of an answer that did not come."""
    return str(e) if str(file) in str(e) else f"{file}: llama.cpp ends at it: {e}"


def reason(code: int, said: str) -> str:
    """Why a process ended, in a line: of all that it wrote, the most telling."""
    for pattern in _REASONS:
        if lines := re.findall(pattern, said):
            return " ".join(line.strip() for line in lines[:2]).rpartition(_SITE)[2]
    if code < 0:
        name = signal.Signals(-code).name
        why = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return f"it was ended by {name}{why}"
    return (said.strip().splitlines() or ["no reason is given"])[-1].strip()


def main() -> None:
    """Answer the question on stdin about the file that is named."""
    file, question = Path(sys.argv[1]), json.load(sys.stdin)
    try:
        answer: Any = None
        if "run" in question:
            check_loads(file, question["text"], question["run"])
        elif "texts" in question:
            with Llama(file, 0) as model:
                texts = [text.encode() for text in question["texts"]]
                answer = [model.tokenize(t, parse=True).tolist() for t in texts]
        else:
            with Llama(file, question["context"], threads=question["threads"]) as model:
                prompt = question.get("prompt")
                answer = complete(model, prompt, question["count"]) if prompt else ""
        print(json.dumps({"answer": answer}))
    except LlamaError as e:
        print(json.dumps({"error": str(e)}))


if __name__ == "__main__":
    main()
