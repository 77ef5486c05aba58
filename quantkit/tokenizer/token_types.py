"""Tokens as llama.cpp keeps them: a text and what kind of token it is."""

from __future__ import annotations

from enum import IntEnum


class TokenType(IntEnum):
    """llama.cpp's token types (llama.h `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPACE = "\u2581"  # SentencePiece's visible space


def looks_special(token: str) -> bool:
    """Tokens that act as control tokens though their files do not say so (llama.cpp's list)."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<\uff5c") and token.endswith("\uff5c>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def added(token: str, special: bool) -> tuple[str, TokenType]:
    """An added token's text and type; llama.cpp wants the text normalized."""
    if special or looks_special(token):
        return token, TokenType.CONTROL
    return token.replace(SPACE, " "), TokenType.USER_DEFINED


def byte_text(data: bytes) -> str:
    """Bytes as a byte-level vocabulary writes them: one printable character for each byte."""
    return "".join(_BYTES[b] for b in data)


def _byte_characters() -> list[str]:
    """GPT-2's: printable bytes stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in printable)
    table = {b: chr(b) for b in printable} | {b: chr(0x100 + n) for n, b in enumerate(others)}
    return [table[b] for b in range(256)]


_BYTES = _byte_characters()
