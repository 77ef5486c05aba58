"""WordPiece vocabularies, BERT's: llama.cpp marks where a word begins, not where one goes on
(`conversion/bert.py`, BertModel.set_vocab)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.special_tokens import content, tokenizer_config
from quantkit.tokenizer.token_types import SPACE, TokenType

# what llama.cpp's converter finds by the hash of most of them; its runtime does not read it
PRE = "jina-v2-en"
PRE_NAMES = ("bert-bge", "bert-bge-large", PRE)
_SPECIAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}

# what llama.cpp takes where a file does not say it: BERT's own vocabulary
_IDS = {"bos": 101, "eos": 102, "unk": 100, "sep": 102, "pad": 0, "mask": 103}


def check_mark(tokenizer: Mapping[str, Any], label: str) -> None:
    """Pieces that go on with a word are marked with `##`, which llama.cpp's converter takes off.
    Raises TokenizerError."""
    mark = tokenizer["model"].get("continuing_subword_prefix", "##")
    if mark != "##":
        raise TokenizerError(
            f"{label}: continuing_subword_prefix is {mark!r}; llama.cpp's pieces go on after '##'"
        )


_ALWAYS = {
    "handle_chinese_chars": "takes each Chinese character for a word",
    "clean_text": "leaves out control characters",
}


def not_done(tokenizer: Mapping[str, Any]) -> list[str]:
    """Lines on what llama.cpp does to a text and the tokenizer does not: no key asks for less."""
    step = tokenizer.get("normalizer") or {}
    return [
        f"{name} is false in tokenizer.json's normalizer; llama.cpp {what} all the same"
        for name, what in _ALWAYS.items()
        if step.get(name) is False
    ]


def special_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The ids of a vocabulary whose special tokens no other file names, where they are not those
    that llama.cpp takes. Its converter finds none there, and other tokens begin and end a text."""
    ids = {t["content"]: t["id"] for t in tokenizer.get("added_tokens") or ()}
    names = {kind: _SPECIAL[{"bos": "cls", "eos": "sep"}.get(kind, kind)] for kind in _IDS}
    found = {kind: ids[text] for kind, text in names.items() if text in ids}
    return {} if found.items() <= _IDS.items() else found


def spelled(tokens: Sequence[str], types: Sequence[int]) -> list[str]:
    """The tokens as llama.cpp has them: `##ing` is `ing`, and `in`, which begins a word, `▁in`.
    Added ones stay as they are, which its converter writes as pieces that no text has."""
    kept = (TokenType.CONTROL, TokenType.USER_DEFINED)
    return [
        text if kind in kept else (text[2:] if text.startswith("##") else SPACE + text)
        for text, kind in zip(tokens, types, strict=True)
    ]


def from_vocab_txt(files: CheckpointFiles) -> dict[str, Any]:
    """What `vocab.txt` would be as a tokenizer.json, as transformers' BertTokenizer makes it.
    Raises TokenizerError."""
    lines = files.text("vocab.txt").split("\n")
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocab = {token: i for i, token in enumerate(tokens)}
    config = tokenizer_config(files)
    if not isinstance(config.get("added_tokens_decoder"), dict):
        config = {**config, **(files.optional("special_tokens_map.json") or {})}
    named = {k: content(config.get(f"{k}_token", text)) for k, text in _SPECIAL.items()}
    special = [text for text in named.values() if text]  # null: there is none
    if lost := [text for text in special if text not in vocab]:
        raise TokenizerError(f"{files.label('vocab.txt')}: no token {lost[0]} is in it")
    lower = bool(config.get("do_lower_case", True))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab[text], "content": text, **flags, "special": True} for text in special
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
            "strip_accents": config.get("strip_accents"),
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": named["unk"] or _SPECIAL["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }
