"""RWKV's vocabulary of byte strings, which are matched greedily: a line of text for each.

A line is an id, a literal of Python (text or bytes) and a number of bytes. The id 0 ends a text; it
has no line. llama.cpp: `conversion/base.py`, _set_vocab_rwkv_world.
"""

from __future__ import annotations

import ast
import re
import warnings

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.byte_level import ByteLevel
from quantkit.tokenizer.token_types import TokenType

FILE = "rwkv_vocab_v20230424.txt"
# one literal and nothing else, of fewer characters than 128 bytes take, the longest that there is
_LINE = re.compile(
    r"(\d{1,9}) (b?(?:'(?:[^'\\]|\\.){1,1024}'|\"(?:[^\"\\]|\\.){1,1024}\")) (\d{1,4})"
)


def read(files: CheckpointFiles, size: int | None) -> ByteLevel:
    """The vocabulary, padded to `size` tokens. Raises TokenizerError."""
    vocab = ByteLevel("", ["<s>"], [int(TokenType.CONTROL)], [], model="rwkv")
    label = files.label(FILE)
    text = files.data(FILE).decode("utf-8", "replace")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a backslash before a letter that it means nothing to
        for n, line in enumerate(filter(None, text.replace("\r\n", "\n").split("\n")), 1):
            if (token := _token(line)) is None:
                raise TokenizerError(
                    f"{label}: line {n} is not an id, a token and its length in bytes"
                )
            vocab.tokens.append(repr(token)[2:-1])
            vocab.types.append(int(TokenType.NORMAL))
    size = len(vocab.tokens) if size is None else size
    if len(vocab.tokens) > size:
        raise TokenizerError(f"{label}: {len(vocab.tokens)} tokens, and the model has {size}")
    padding = range(len(vocab.tokens), size)
    vocab.tokens += [f"[PAD{i}]" for i in padding]
    vocab.types += [int(TokenType.UNUSED)] * len(padding)
    return vocab


def _token(line: str) -> bytes | None:
    if not (found := _LINE.fullmatch(line)):
        return None
    try:
        value = ast.literal_eval(found[2])
    except (ValueError, SyntaxError):
        return None
    token: bytes = value.encode() if isinstance(value, str) else value
    return token if len(token) == int(found[3]) else None
