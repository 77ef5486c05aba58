"""What drafts have in common, which guess what another model will say: a part of its vocabulary.

llama.cpp: `conversion/llama.py`, `conversion/qwen.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Key,
    Map,
    Piece,
    Shape,
    Values,
    piece,
)
from quantkit.errors import ConfigError
from quantkit.source.tensors import SourceTensor

# a smaller vocabulary: the distance of each of its tokens from that of the other model
IDS = "~d2t"  # after all other names


def _one_row(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    return (piece("d2t", source, 1),)


SMALLER = Map(IDS, ("draft",), _one_row, "smaller vocabulary", like=IDS)


def learned_of_draft(sources: Mapping[str, SourceTensor], values: Values) -> dict[str, Any]:
    """What its tensors say of it: a smaller vocabulary, a head that says how sure it is, the width
    of the chain of guesses."""
    found = next((t for name, t in sources.items() if name in ("d2t", "model.d2t")), None)
    chain = next((t for name, t in sources.items() if name.endswith("markov_w1.weight")), None)
    return {
        "d2t": None if found is None else values(found),
        "sure": any("confidence_" in name for name in sources),
        "markov_rank": 0 if chain is None else chain.shape[-1],
    }


def mask_token(read: Callable[[Config], int]) -> Key:
    """The token that stands for what is to be guessed; `read` finds it in the config."""

    def value(config: Config) -> int:
        token, n = read(config), config.get("vocab_size")
        if not 0 <= token < n:
            raise ConfigError(f"{config.where}: the mask token is {token}, of {n} tokens")
        return token

    return Key("tokenizer.ggml.mask_token_id", value)


def draft_vocab(config: Config) -> int:
    n: int = config.get("draft_vocab_size", "vocab_size")
    return n


def ids_of_target(config: Config) -> dict[str, Any]:
    """The token of the other model that each is. Raises ConfigError."""
    import numpy as np

    found, n = config.find("d2t"), config.get("vocab_size")
    if found is None:
        if draft_vocab(config) < n:
            raise ConfigError(f"{config.where}: {draft_vocab(config)} of {n} tokens, and no d2t")
        return {}
    ids = np.array(found, np.int64) + np.arange(len(found))
    if len(ids) != draft_vocab(config) or len({*ids.tolist()}) != len(ids):
        raise ConfigError(f"{config.where}: d2t has not {draft_vocab(config)} different tokens")
    if len(ids) and not 0 <= ids.min() <= ids.max() < n:
        raise ConfigError(f"{config.where}: d2t has tokens past the model's {n}")
    return {IDS: ids}


def misfit(arch: Architecture, config: Config, names: Iterable[str]) -> str | None:
    """A line where llama.cpp ends as it runs a draft of these source tensors beside the model that
    `config` has as its target (`common/speculative.cpp`)."""
    width, layers = (config.find(f"target.{n}") for n in ("hidden_size", "num_hidden_layers"))
    own = config.one("hidden_size")
    takes_rows = arch.gguf_arch == "dflash" or not any("embed_tokens" in name for name in names)
    if takes_rows and width and width != own:
        return (
            f"the draft is {own} channels wide and its model {width}: llama.cpp does not run them "
            "together"
        )
    keys = (k for k in (*arch.first_keys, *arch.late_keys) if k.name == "{arch}.target_layers")
    read = next((k.read(config) for k in keys), None)
    if layers and read and max(read) > layers:
        return (
            f"the draft reads layer {max(read)} of its model, which has {layers}: llama.cpp does "
            "not run them together"
        )
    return None
