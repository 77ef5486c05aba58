"""The real llama.cpp, from the xllamacpp wheel: it loads our files, tokenizes and completes."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp


class Llama:
    """A model that is loaded and served on a loopback port by llama.cpp's own server."""

    def __init__(
        self, path: Path, context: int = 512, exact: bool = False, adapter: Path | None = None
    ) -> None:
        """`exact`: keys and values are kept in float32. `adapter`: a LoRA, applied in full."""
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        if adapter:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = 2
        params.n_gpu_layers = 0
        params.warmup = False
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.port = 0
        self._server = xllamacpp.Server(params)

    def complete(self, prompt: str, n_predict: int = 8) -> dict[str, Any]:
        """The greedy completion, with the log-probability of each token."""
        answer = self._server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": n_predict,
                "temperature": 0.0,
                "logprobs": 1,
                "cache_prompt": False,
            }
        )
        return answer if isinstance(answer, dict) else json.loads(answer)

    def log_probabilities(self, prompt: list[int]) -> dict[int, float]:
        """The log-probability of each token to come after the token ids of a prompt.

        The server shows none beside a token that ends the text, or is part of a character; the bias
        makes it choose another and does not change what it shows.
        """
        answer = self._server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": 1,
                "temperature": 0.0,
                "logprobs": 1 << 20,
                "logit_bias": [["a", 1000.0]],
                "cache_prompt": False,
            }
        )
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        first = answer["choices"][0]["logprobs"]["content"][0]
        return {t["id"]: t["logprob"] for t in first["top_logprobs"]}

    def tokenize(self, text: str) -> list[int]:
        """Token ids, without the special tokens that a model adds to a text."""
        body = json.dumps({"content": text, "add_special": False, "parse_special": False})
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            tokens: list[int] = json.load(response)["tokens"]
        return tokens
