"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does.

llama.cpp recognises a tokenizer by the hash of a text that it encodes, so that any change of the
vocabulary makes it a stranger. The split itself is written in tokenizer.json, and is what counts:
two tokenizers with the same split patterns have the same pre-tokenizer, whatever their tokens are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.errors import TokenizerError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# name in llama.cpp (llama-vocab.cpp) -> the splits that it stands for
_SPLITS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("llama-bpe", (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",)),
    ("qwen2", (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",)),
    ("tekken", (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )),
    ("gpt-2", (_GPT2,)),
)  # fmt: skip


def find_pre(tokenizer: dict[str, Any], path: Path) -> tuple[str, str]:
    """llama.cpp's name for the tokenizer's split, and why. Raises TokenizerError if it has none."""
    splits = tuple(_splits(tokenizer.get("pre_tokenizer") or {}))
    for name, known in _SPLITS:
        if splits == known:
            return name, "its split pattern"
    raise TokenizerError(
        f"{path}: no pre-tokenizer of llama.cpp is known to split as it does "
        f"({' then '.join(splits) or 'no split pattern'}); name one with --pre"
    )


def _splits(step: dict[str, Any]) -> list[str]:
    kind = step.get("type")
    if kind == "Sequence":
        return [s for inner in step.get("pretokenizers", []) for s in _splits(inner)]
    if kind == "Split":
        pattern = step.get("pattern") or {}
        return [pattern.get("Regex") or pattern.get("String") or "?"]
    if kind == "ByteLevel":
        return [_GPT2] if step.get("use_regex", True) else []
    return [f"<{kind}>"] if kind else []
