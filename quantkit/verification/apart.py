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
from pathlib import Path
from typing import Any

from quant_types import isolated
from quantkit.errors import LlamaError
from quantkit.verification.llama_cpp import Llama, check_loads, complete, library

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


def told(file: Path, e: LlamaError) -> str:
    """What a person is told of an answer that did not come."""
    return str(e) if str(file) in str(e) else f"{file}: llama.cpp ends at it: {e}"


def reason(code: int, said: str) -> str:
    """Why a process ended, in a line: of all that it wrote, the most telling."""
    for pattern in _REASONS:
        if lines := re.findall(pattern, said):
            return " ".join(line.strip() for line in lines[:2]).rpartition(_SITE)[2]
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
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
