"""Windows that a checkpoint's layers have, and not those of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable

from quantkit.architectures.config import CLASS
from quantkit.architectures.rules import Architecture, Config
from quantkit.gguf.container import KeyValue

# classes of transformers whose layers all have one, if config.json says how wide it is; others ask
# `use_sliding_window`
_ALL_SLIDE = {"mistral", "mixtral", "starcoder2", "phi3", "phimoe"}
_UNUSED = {"phi3"}  # whose loader reads the key and leaves windows out


def window_note(arch: Architecture, config: Config, kv: Iterable[KeyValue]) -> str | None:
    """A line for people where layers see a window of the text in the checkpoint, and all of it in
    llama.cpp."""
    key = f"{arch.gguf_arch}.attention.sliding_window"
    if arch.gguf_arch not in _UNUSED and any(item.key == key for item in kv):
        return None
    window, context = config.find("sliding_window"), config.find("max_position_embeddings")
    if type(window) is not int or window < 1 or (type(context) is int and window >= context):
        return None
    n = _sliding(config)
    if n is None:
        return None
    return (
        f"{n} of {config.layers} layers see {window} tokens in the checkpoint, and all in "
        "llama.cpp: the GGUF file will answer differently to longer texts"
    )


def _sliding(config: Config) -> int | None:
    """How many layers have a window; none: None."""
    types, first = config.find("layer_types"), config.find("max_window_layers")
    used = config.find("use_sliding_window")
    if used is False:
        return None
    if isinstance(types, list):
        return types.count("sliding_attention") or None
    if used is None:
        return config.layers if config.find(CLASS) in _ALL_SLIDE else None
    return max(config.layers - (first if type(first) is int else 0), 0) or None
