"""The real llama.cpp, from the xllamacpp wheel: it loads our files, tokenizes and completes."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp


class Llama:
    """A model that is loaded and served on a loopback port by llama.cpp's own server."""

    def __init__(self, path: Path, context: int = 512) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = 2
        params.n_gpu_layers = 0
        params.warmup = False
        params.port = 0
        self._server = xllamacpp.Server(params)

    def complete(self, prompt: str, n_predict: int = 8) -> dict[str, Any]:
        """The greedy completion, with the log-probability of each token."""
        answer = self._server.handle_completions({
            "prompt": prompt, "n_predict": n_predict, "temperature": 0.0, "logprobs": 1,
            "cache_prompt": False,
        })  # fmt: skip
        return answer if isinstance(answer, dict) else json.loads(answer)

    def tokenize(self, text: str) -> list[int]:
        """Token ids, without the special tokens that a model adds to a text."""
        body = json.dumps({"content": text, "add_special": False, "parse_special": False})
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize", body.encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as response:
            tokens: list[int] = json.load(response)["tokens"]
        return tokens
