"""Layers of a model that predict further tokens, run as llama.cpp's own drafting runs them: in a
context of their own, where each token comes with what the model made of the one before it.

The two functions for that state are of `src/llama-ext.h`, which has no C names.
"""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_float, c_void_p
from typing import Any

import numpy as np

from quantkit.errors import LlamaError, LlamaMissing
from quantkit.llama.llama_cpp import Llama, library

_KIND = 1  # llama_context_type: LLAMA_CONTEXT_TYPE_MTP
# as compilers on Linux and macOS spell `llama_set_embeddings_nextn(ctx, value, masked)` and
# `llama_get_embeddings_nextn(ctx)`
_KEEP = "_Z26llama_set_embeddings_nextnP13llama_contextbb"
_KEPT = "_Z26llama_get_embeddings_nextnP13llama_context"


class Ahead:
    """The layers ahead of a model that was loaded with them, run beside it.

    `outputs`: also the matrix that makes logits of what they give; `batch`: tokens of a sequence
    that go through them at once. Frees what is its own at the end of a `with`, before the model is
    freed. Raises LlamaMissing: this llama.cpp has no such functions; LlamaError.
    """

    def __init__(self, model: Llama, outputs: bool, batch: int) -> None:
        self._model, self._lib, self._outputs, self._batch = model, library(), outputs, batch
        try:
            keep, self._kept = self._lib[_KEEP], self._lib[_KEPT]
        except AttributeError:
            raise LlamaMissing(
                "this llama.cpp shows nothing to layers that predict further tokens; leave them "
                "out (no --nextn)"
            ) from None
        keep.restype, keep.argtypes = None, (c_void_p, c_bool, c_bool)
        self._kept.restype, self._kept.argtypes = ctypes.POINTER(c_float), (c_void_p,)
        self._width = int(self._lib.llama_model_n_embd_out(model.model))
        self._context: int | None = model.new_context(_KIND)
        keep(model.room, True, False)  # of every token, whether its logits are wanted or not

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._context:
            self._lib.llama_free(self._context)
        self._context = None

    def read(self, rows: np.ndarray[Any, Any]) -> None:
        """Token ids `[sequences, n]` that the model has just read, from their beginning. The first
        of them has none before it, and is left out. Raises LlamaError."""
        count, n = rows.shape
        found = self._kept(self._model.room)
        if not found:
            raise LlamaError(f"{self._model.path}: llama.cpp keeps nothing of its last layer")
        states = np.ctypeslib.as_array(found, (count, n, self._width))
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        for first in range(0, n, self._batch):
            part = slice(max(first, 1), first + self._batch)
            ids = rows[:, part]
            if not ids.size:
                continue
            self._model.run(
                self._lib.llama_decode,
                ids,
                part.start,
                np.full(ids.shape, self._outputs, np.int8),
                np.ascontiguousarray(states[:, part.start - 1 : part.start - 1 + ids.shape[1]]),
                self._context,
            )
