"""tiktoken vocabularies: ranks of byte strings, read without running the checkpoint's own code.

The merges follow from the ranks; the special tokens come after them. Three kinds are known, Kimi's,
HunYuan's and the first Qwen's (llama.cpp `conversion/deepseek.py`, `conversion/hunyuan.py` and
`conversion/base.py`, _set_vocab_qwen, and the tokenizers of these families).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.byte_level import ByteLevel
from quantkit.tokenizer.pre_tokenizer import known_pre
from quantkit.tokenizer.special_tokens import tokenizer_config
from quantkit.tokenizer.token_types import TokenType, byte_text

MAX_TOKEN = 4096  # characters in base64; the longest known are of some hundred spaces
Config = Mapping[str, Any]  # tokenizer_config.json


@dataclass(frozen=True)
class Kind:
    """A tokenizer class: its file, its pre-tokenizer, and the special tokens after the ranks that
    tokenizer_config.json does not name ("" for none)."""

    file: str
    pre: str
    special: Callable[[Config, int, int], str]  # (config, id, place after the ranks) -> text


def _kimi(config: Config, token_id: int, place: int) -> str:
    """The tokenizer class of Kimi's models reserves 256 tokens."""
    reserved = config.get("tokenizer_class") == "TikTokenTokenizer"
    return f"<|reserved_token_{token_id}|>" if reserved and place < 256 else ""


_HUNYUAN = ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>")


def _hunyuan(config: Config, token_id: int, place: int) -> str:
    if place < len(_HUNYUAN):
        return _HUNYUAN[place]
    extra = place - len(_HUNYUAN)
    return f"<|extra_{extra}|>" if extra < 205 else ""


def _qwen(config: Config, token_id: int, place: int) -> str:
    if place < 3:
        return ("<|endoftext|>", "<|im_start|>", "<|im_end|>")[place]
    return f"<|extra_{place - 3}|>" if place < 208 else ""


KINDS = (
    Kind("tiktoken.model", "kimi-k2", _kimi),
    Kind("hy.tiktoken", "hunyuan", _hunyuan),
    Kind("qwen.tiktoken", "qwen2", _qwen),
)

CHATGLM = Kind("tokenizer.model", "chatglm-bpe", lambda config, token_id, place: "")


def kind_of(files: CheckpointFiles) -> Kind | None:
    """The kind of tiktoken vocabulary that a checkpoint has, if it has one."""
    return next((kind for kind in KINDS if files.has(kind.file)), None)


def read(files: CheckpointFiles, kind: Kind, size: int | None, pre: str | None) -> ByteLevel:
    """The vocabulary, padded or cut to `size` tokens. Raises TokenizerError."""
    ranks = _read_ranks(files.data(kind.file), files.label(kind.file))
    by_id = {rank: byte_text(token) for token, rank in ranks.items()}
    config = tokenizer_config(files)
    decoder = config.get("added_tokens_decoder") or {}
    named = {int(i): str(entry["content"]) for i, entry in decoder.items()}
    if size is None:
        size = max([*by_id, *named], default=-1) + 1
    name = known_pre(pre) if pre is not None else kind.pre
    why = "given" if pre is not None else f"the one that llama.cpp knows for {kind.file}"
    vocab = ByteLevel(name, [], [], _merges(ranks), [f"pre-tokenizer {name}: {why}"])
    for i in range(size):
        text, token_type = by_id.get(i, ""), TokenType.NORMAL
        if i not in by_id:
            text, token_type = named.get(i, ""), TokenType.CONTROL
            text = text or kind.special(config, i, i - len(ranks))
        if not text:
            text, token_type = f"[PAD{i}]", TokenType.UNUSED
        vocab.tokens.append(text)
        vocab.types.append(int(token_type))
    return vocab


def _read_ranks(data: bytes, label: str) -> dict[bytes, int]:
    """Token -> rank, from lines of a token in base64 and its rank. Raises TokenizerError."""
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            if len(token) > MAX_TOKEN or len(rank) > 9:
                raise ValueError
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"{label}: line {n} is not a token in base64 and its rank, or a long one"
            ) from None
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[str]:
    """The merge that makes each token: of the two parts that merges of lower rank leave of it."""
    merges = []
    for token, rank in ranks.items():
        parts = _parts(ranks, token, rank)
        if len(token) > 1 and len(parts) == 2:
            merges.append(" ".join(byte_text(p) for p in parts))
    return merges


def _parts(ranks: dict[bytes, int], token: bytes, rank: int) -> list[bytes]:
    """What is left of a token's bytes after all merges of a lower rank than its own."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 1:
        joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        best = min(joined)
        if best >= rank:
            break
        i = joined.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
