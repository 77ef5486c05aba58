"""The real llama.cpp by ctypes, from the shared object of the `xllamacpp` wheel (an extra).

Signatures are those of llama.cpp's `include/llama.h`. Its parameters are structures, passed by
value, that grow with every version and carry no number: only their first fields are touched, after
the defaults have been found where they should be.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from ctypes import (
    c_bool,
    c_byte,
    c_char,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit.errors import LlamaError, LlamaMissing
from quantkit.loading.patterns import ENCODERS
from quantkit.storage.os_files import default_threads

_UNPOOLED, _SCORED = 0, 4  # llama.h `llama_pooling_type`
_ROOM = 512  # bytes, more than these structures have
_LOG_ERROR = 4  # ggml_log_level
_READ = 0  # llama_load_mode: neither mapped nor locked

# The fields that are known of `llama_model_params` and `llama_context_params`, what they are by
# default, and their types. Those that follow go back as they came.
_MODEL: dict[str, tuple[Any, Any]] = {
    "devices": (None, c_void_p), "tensor_buft_overrides": (None, c_void_p),
    "n_gpu_layers": (-1, c_int32), "split_mode": (1, c_int32), "load_mode": (-1, c_int32),
    "lazy_mode": (1, c_int32), "main_gpu": (0, c_int32), "tensor_split": (None, c_void_p),
    "progress_callback": (None, c_void_p), "progress_callback_user_data": (None, c_void_p),
    "kv_overrides": (None, c_void_p), "vocab_only": (False, c_bool),
    "check_tensors": (False, c_bool), "use_extra_bufts": (True, c_bool),
    "no_host": (False, c_bool), "no_alloc": (False, c_bool), "load_mtp": (False, c_bool),
}  # fmt: skip
_CONTEXT: dict[str, tuple[Any, Any]] = {
    "n_ctx": (512, c_int32), "n_batch": (2048, c_int32), "n_ubatch": (512, c_int32),
    "n_seq_max": (1, c_int32), "n_rs_seq": (0, c_int32), "n_outputs_max": (0, c_int32),
    "n_outputs_max_per_seq": (1, c_int32), "n_threads": (4, c_int32),
    "n_threads_batch": (4, c_int32), "ctx_type": (0, c_int32), "rope_scaling_type": (-1, c_int32),
    "pooling_type": (-1, c_int32), "attention_type": (-1, c_int32),
    "flash_attn_type": (-1, c_int32), "rope_freq_base": (0, c_float),
    "rope_freq_scale": (0, c_float), "yarn_ext_factor": (-1, c_float),
    "yarn_attn_factor": (-1, c_float), "yarn_beta_fast": (-1, c_float),
    "yarn_beta_slow": (-1, c_float), "yarn_orig_ctx": (0, c_int32), "defrag_thold": (-1, c_float),
    "cb_eval": (None, c_void_p), "cb_eval_user_data": (None, c_void_p),
}  # fmt: skip


class _ModelParams(ctypes.Structure):
    _fields_ = (*((name, kind) for name, (_, kind) in _MODEL.items()), ("rest", c_byte * _ROOM))


class _ContextParams(ctypes.Structure):
    _fields_ = (
        *((name, kind) for name, (_, kind) in _CONTEXT.items()),
        ("rest", c_uint64 * (_ROOM // 8)),
    )


class _Override(ctypes.Structure):
    """`llama_model_kv_override`: metadata that the model is loaded with instead of its own."""

    _fields_ = (
        ("tag", c_int32), ("key", c_char * 128), ("value", c_int64), ("rest", c_byte * 120),
    )  # fmt: skip


class _Batch(ctypes.Structure):
    """`llama_batch`: n tokens, their places, the sequences they are of, whose logits are wanted."""

    _fields_ = (
        ("n_tokens", c_int32), ("token", c_void_p), ("embd", c_void_p), ("pos", c_void_p),
        ("n_seq_id", c_void_p), ("seq_id", c_void_p), ("logits", c_void_p),
    )  # fmt: skip


# function -> (what it returns, what it takes)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (c_void_p, c_void_p)),
    "llama_model_default_params": (_ModelParams, ()),
    "llama_context_default_params": (_ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, _ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_init_from_model": (c_void_p, (c_void_p, _ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_vocab_bos": (c_int32, (c_void_p,)),
    "llama_vocab_eos": (c_int32, (c_void_p,)),
    "llama_vocab_get_add_bos": (c_bool, (c_void_p,)),
    "llama_vocab_is_eog": (c_bool, (c_void_p, c_int32)),
    "llama_tokenize": (
        c_int32, (c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool)
    ),
    "llama_token_to_piece": (
        c_int32, (c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool)
    ),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_decode": (c_int32, (c_void_p, _Batch)),
    "llama_encode": (c_int32, (c_void_p, _Batch)),
    "llama_get_logits": (ctypes.POINTER(c_float), (c_void_p,)),
    "llama_model_meta_val_str": (c_int32, (c_void_p, c_char_p, c_char_p, c_size_t)),
    "llama_model_has_encoder": (c_bool, (c_void_p,)),
    "llama_model_decoder_start_token": (c_int32, (c_void_p,)),
    "llama_model_n_cls_out": (c_uint32, (c_void_p,)),
    "llama_model_n_embd_out": (c_int32, (c_void_p,)),
    "llama_pooling_type": (c_int32, (c_void_p,)),
    "llama_set_embeddings": (None, (c_void_p, c_bool)),
    "llama_get_embeddings": (ctypes.POINTER(c_float), (c_void_p,)),
    "llama_get_embeddings_seq": (ctypes.POINTER(c_float), (c_void_p, c_int32)),
}  # fmt: skip

_said: list[str] = []  # llama.cpp's last complaint


def _listen(level: int, text: bytes, data: int | None) -> None:
    """Errors are kept for the message of the one that is raised; the rest is not shown."""
    if level == _LOG_ERROR:
        _said[:] = [*_said[-3:], text.decode("utf-8", "replace").strip()]


_LISTENER = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)(_listen)


@functools.cache
def library() -> ctypes.CDLL:
    """llama.cpp's functions. Raises LlamaMissing: not installed, or of a layout not known here."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise LlamaMissing("llama.cpp is not installed; pip install 'quantkit-gguf[llama]'")
    try:
        (path,) = (
            p for p in Path(spec.origin).parent.glob("xllamacpp*") if p.suffix in (".so", ".pyd")
        )
        lib = ctypes.CDLL(str(path))
        for name, (returned, taken) in _FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = returned, taken
    except (ValueError, OSError, AttributeError) as e:
        raise LlamaMissing(f"{_wheel()} has no llama.cpp that can be called ({e})") from None
    for fields, made in (
        (_CONTEXT, lib.llama_context_default_params()),
        (_MODEL, lib.llama_model_default_params()),
    ):
        for name, (expected, _) in fields.items():
            if (value := getattr(made, name)) != expected:
                raise LlamaMissing(
                    f"{_wheel()} has a llama.cpp of another layout than is known here ({name} is "
                    f"{value}, not {expected}); install xllamacpp 2026.10"
                )
    lib.llama_backend_init()
    return lib


def _wheel() -> str:
    return f"xllamacpp {version('xllamacpp')}"


class Llama:
    """A model that llama.cpp has loaded, and `sequences` places of `context` tokens each; for
    0 tokens, its vocabulary alone.

    `at_once`: how many tokens go through a layer together (llama.cpp's own 512); `watch`: a
    callback `ggml_backend_sched_eval_callback`; `overrides`: whole numbers of the metadata;
    `ahead`: layers that predict further tokens are loaded, too (`ahead.py` runs them).
    Frees it all at the end of a `with`. Raises LlamaMissing, LlamaError.
    """

    def __init__(
        self,
        path: Path,
        context: int = 512,
        sequences: int = 1,
        threads: int | None = None,
        *,
        at_once: int | None = None,
        watch: Any = None,
        overrides: Mapping[str, int] = MappingProxyType({}),
        ahead: bool = False,
    ) -> None:
        self.path, self.context, self.sequences = path, context, sequences
        self._lib, self.room = library(), None
        _said.clear()
        self._lib.llama_log_set(
            _LISTENER, None
        )  # whoever else uses the library may have set theirs
        params = self._lib.llama_model_default_params()
        params.vocab_only, params.load_mtp = context == 0, ahead
        changed = (_Override * (len(overrides) + 1))()  # the last, empty one ends the list
        for place, (key, value) in zip(changed, overrides.items(), strict=False):
            place.key, place.value = key.encode(), value
        params.kv_overrides = ctypes.addressof(changed) if overrides else None
        self._at_once, self._watch = at_once, watch  # which is called as long as this lives
        self.model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise LlamaError(f"{path}: llama.cpp does not load it: {_reason()}")
        self._vocab = self._lib.llama_model_get_vocab(self.model)
        self.n_vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._threads = threads or default_threads()
        if context:
            self.room = self.new_context()

    def new_context(self, kind: int = 0) -> int:
        """Room to run the model in, of a kind (`llama_context_type`), for the caller to free.
        Raises LlamaError."""
        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = self.context * self.sequences
        params.n_seq_max = self.sequences
        params.n_threads = params.n_threads_batch = self._threads
        params.ctx_type = kind
        params.n_ubatch = self._at_once or params.n_ubatch
        params.cb_eval = ctypes.cast(self._watch, c_void_p) if self._watch else None
        made: int | None = self._lib.llama_init_from_model(self.model, params)
        if not made:
            self.close()
            raise LlamaError(f"{self.path}: llama.cpp does not run it: {_reason()}")
        return made

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory."""
        if self.room:
            self._lib.llama_free(self.room)
        if self.model:
            self._lib.llama_model_free(self.model)
        self.room = self.model = None

    @property
    def bos(self) -> int | None:
        """The token that begins a text, where the model wants one."""
        wanted = self._lib.llama_vocab_get_add_bos(self._vocab)
        return int(self._lib.llama_vocab_bos(self._vocab)) if wanted else None

    @property
    def embeds(self) -> bool:
        """Whether it gives vectors, not logits."""
        room = ctypes.create_string_buffer(64)
        name = b"general.architecture"
        self._lib.llama_model_meta_val_str(self.model, name, room, len(room))
        return room.value.decode("utf-8", "replace") in ENCODERS

    @property
    def translates(self) -> bool:
        """Whether a text is read by an encoder and answered by a decoder."""
        return bool(self._lib.llama_model_has_encoder(self.model)) and not self.embeds

    @property
    def start(self) -> int:
        """The token that a text of its own begins with: the one that begins a text, or else ends
        one; the first of the vocabulary where there is neither."""
        named = (self._lib.llama_vocab_bos(self._vocab), self._lib.llama_vocab_eos(self._vocab))
        return next((int(token) for token in named if token >= 0), 0)

    def ends(self, token: int) -> bool:
        """Whether a token ends the text."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def tokenize(
        self, text: bytes, special: bool = False, parse: bool = False
    ) -> np.ndarray[Any, Any]:
        """The int32 ids of a text in UTF-8; `special`: with the tokens that a model adds; `parse`:
        control tokens that are spelled in it are taken for what they are."""
        n = -len(text) - 2  # more where a space in front is three bytes, each of them a token
        for _ in range(2):
            ids = np.empty(-n, np.int32)
            n = self._lib.llama_tokenize(
                self._vocab, text, len(text), ids.ctypes.data, len(ids), special, parse
            )
            if n >= 0 or n < -1 << 30:
                break
        if n < 0:
            raise LlamaError(f"{self.path}: llama.cpp does not tokenize a text: {_reason()}")
        return ids[:n]

    def text(self, ids: Sequence[int], special: bool = False) -> str:
        """The text that token ids stand for, wherever they stand; `special`: control tokens are
        spelled."""
        return b"".join(self._piece(i, special) for i in ids).decode("utf-8", "replace")

    def _piece(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            room = ctypes.create_string_buffer(size)
            n = self._lib.llama_token_to_piece(self._vocab, token, room, size, 0, special)
            if n >= 0:
                return room.raw[:n]
            size = -n

    def decode(
        self, rows: np.ndarray[Any, Any], first: int, last: int | None = None, position: int = 0
    ) -> np.ndarray[Any, Any]:
        """Token ids `[sequences, n]` through the model. They stand at `position` and after it;
        position 0 begins anew.

        Returns the logits at columns `first` to `last`, float32 `[sequences, columns, n_vocab]`,
        valid until the next call. Raises LlamaError.
        """
        count, n = rows.shape
        if position == 0:
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self.room), True)
        wanted = np.zeros((count, n), np.int8)
        wanted[:, first:last] = 1
        self.run(self._lib.llama_decode, rows, position, wanted)
        shape = (count, int(wanted[0].sum()), self.n_vocab)
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self.room), shape)

    def encode(self, ids: np.ndarray[Any, Any]) -> int:
        """The ids of a text through the encoder; the token that its decoder begins with. Raises
        LlamaError."""
        self.run(self._lib.llama_encode, ids[None], 0, np.ones((1, len(ids)), np.int8))
        start = int(self._lib.llama_model_decoder_start_token(self.model))
        return max(start, 0)

    def embed(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What the model makes of the ids of a text: float32, one vector or the scores of a
        classifier, or `[n, width]` where the outputs are not pooled. Raises LlamaError."""
        lib = self._lib
        lib.llama_set_embeddings(self.room, True)
        encodes = lib.llama_model_has_encoder(self.model)
        wanted = np.ones((1, len(ids)), np.int8)
        self.run(lib.llama_encode if encodes else lib.llama_decode, ids[None], 0, wanted)
        kind, width = lib.llama_pooling_type(self.room), lib.llama_model_n_embd_out(self.model)
        if kind == _UNPOOLED:
            found, shape = lib.llama_get_embeddings(self.room), [len(ids), width]
        else:
            n = lib.llama_model_n_cls_out(self.model) if kind == _SCORED else width
            found, shape = lib.llama_get_embeddings_seq(self.room, 0), [n]
        if not found:
            raise LlamaError(f"{self.path}: llama.cpp gives no embedding: {_reason()}")
        return np.array(np.ctypeslib.as_array(found, shape))

    def run(
        self,
        function: Callable[..., int],
        rows: np.ndarray[Any, Any],
        position: int,
        wanted: np.ndarray[Any, Any],
        states: np.ndarray[Any, Any] | None = None,
        within: int | None = None,
    ) -> None:
        """Token ids `[sequences, n]` through the encoder or the decoder, each with a state, float32
        `[sequences, n, width]`, in a context that is not the first. Raises LlamaError."""
        count, n = rows.shape
        tokens = np.ascontiguousarray(rows, np.int32)
        places = np.tile(np.arange(position, position + n, dtype=np.int32), count)
        ones = np.ones(count * n, np.int32)
        ids = np.repeat(np.arange(count, dtype=np.int32), n)
        pointers = ids.ctypes.data + 4 * np.arange(count * n, dtype=np.uintp)
        status = function(
            within or self.room,
            _Batch(
                count * n,
                tokens.ctypes.data,
                None if states is None else states.ctypes.data,
                places.ctypes.data,
                ones.ctypes.data,
                pointers.ctypes.data,
                wanted.ctypes.data,
            ),
        )
        if status != 0:
            raise LlamaError(f"{self.path}: llama.cpp does not decode ({status}): {_reason()}")


def check_loads(path: Path, text: str, run: bool) -> None:
    """Load a model without its weights, so that headers alone are read, split a text, if there is
    one, and, to `run`, lay out what would be computed. Raises LlamaMissing, LlamaError."""
    lib = library()
    _said.clear()
    lib.llama_log_set(_LISTENER, None)
    params = lib.llama_model_default_params()
    params.load_mode, params.no_alloc, params.n_gpu_layers = _READ, True, 0
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise LlamaError(f"{path}: llama.cpp does not load it: {_reason()}")
    if text:
        data, ids = text.encode(), (c_int32 * (len(text.encode()) + 2))()
        vocab = lib.llama_model_get_vocab(model)
        lib.llama_tokenize(vocab, data, len(data), ids, len(ids), True, True)
    if run:
        room = lib.llama_context_default_params()
        room.n_ctx = room.n_batch = room.n_ubatch = 64
        context = lib.llama_init_from_model(model, room)
        if not context:
            raise LlamaError(f"{path}: llama.cpp does not run it: {_reason()}")
        lib.llama_free(context)
    lib.llama_model_free(model)


def _reason() -> str:
    return "; ".join(_said) or "no reason is given"
