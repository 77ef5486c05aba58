"""Unigram vocabularies, which llama.cpp calls `t5`: of T5, and of XLM-RoBERTa and its kin.

Unlike SentencePiece's other kind they are split by the best sum of scores, after a table of
characters has normalized the text. Facts of llama.cpp's `conversion/bert.py`
(_xlmroberta_set_vocab) and `conversion/t5.py`.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.class_tokens import class_tokens
from quantkit.tokenizer.sentencepiece import Piece, prepends_space, read_pieces
from quantkit.tokenizer.special_tokens import TYPES, content, tokenizer_config
from quantkit.tokenizer.token_types import TokenType
from quantkit.tokenizer.token_types import added as typed

_UNIGRAM = 1  # sentencepiece_model.proto, TrainerSpec.ModelType
MASK = 250001  # of XLM-RoBERTa, which no SentencePiece model of it has


@dataclass
class Unigram:
    """Text, score and type of every token id. `space_prefix`: whether a space is put before the
    text; `one_space`: whether runs of spaces become one; `charsmap`: SentencePiece's table of
    characters, or nothing."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    space_prefix: bool
    one_space: bool
    charsmap: bytes
    notes: list[str] = field(default_factory=list)


def is_unigram(files: CheckpointFiles, name: str) -> bool:
    """Whether a SentencePiece model is split by scores, not by merges. Raises TokenizerError."""
    trainer = _message(_message(files.data(name)).get(2, b""))
    return bool(trainer.get(3, _UNIGRAM) == _UNIGRAM)


def from_model(
    files: CheckpointFiles, name: str, size: int | None, fairseq: bool, mask: bool
) -> Unigram:
    """A SentencePiece model of `size` tokens. `fairseq`: ids as XLM-RoBERTa has them, `<s> <pad>
    </s> <unk>` and then the pieces from the fourth on; `mask`: with its mask token. Otherwise
    added_tokens.json has more tokens. Raises TokenizerError."""
    pieces, _ = read_pieces(files, name)
    # transformers' vocabulary has those of the model at least
    table = _padded(max(size or 0, len(pieces)) if fairseq else (size or len(pieces)))
    entries = [*pieces]
    if not fairseq:
        added = files.optional("added_tokens.json") or {}
        more = [(int(i), (t, -1000.0, TokenType.USER_DEFINED)) for t, i in added.items()]
        _set(table, [*enumerate(entries), *more])
    else:
        _set(table, enumerate(entries))
        control = TokenType.CONTROL
        first = (("<s>", control), ("<pad>", control), ("</s>", control),
                 ("<unk>", TokenType.UNKNOWN))  # fmt: skip
        table.tokens[:] = [*(t for t, _ in first), *table.tokens[3:-1]]
        table.scores[:] = [0.0] * len(first) + table.scores[3:-1]
        table.types[:] = [*(int(kind) for _, kind in first), *table.types[3:-1]]
        if mask and len(table.tokens) > MASK:
            _set(table, [(MASK, ("<mask>", 0.0, control))])
        _set(table, _added_behind(files, table))
    normalizer = _message(_message(files.data(name)).get(3, b""))
    table.space_prefix, table.one_space = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    charsmap = normalizer.get(2, b"")
    table.charsmap = charsmap if isinstance(charsmap, bytes) else b""
    return table


def _added_behind(files: CheckpointFiles, table: Unigram) -> Iterator[tuple[int, Piece]]:
    """The tokens that a tokenizer.json adds behind the pieces; the mask, which no text has, stays
    padding, as in llama.cpp's files."""
    for t in (files.optional("tokenizer.json") or {}).get("added_tokens") or []:
        i, text = int(t["id"]), str(t["content"])
        if i < len(table.tokens) and table.types[i] == TokenType.UNUSED and text != "<mask>":
            yield i, (text, 0.0, typed(text, bool(t.get("special")))[1])


def from_json(files: CheckpointFiles, tokenizer: Mapping[str, Any], size: int | None) -> Unigram:
    """A Unigram tokenizer.json, padded to `size`. Raises TokenizerError."""
    label = files.label("tokenizer.json")
    vocab = tokenizer["model"].get("vocab")
    if not isinstance(vocab, list) or not all(
        isinstance(v, list) and len(v) == 2 and isinstance(v[0], str) for v in vocab
    ):
        raise TokenizerError(f"{label}: its vocabulary is not a list of pieces with scores")
    config = tokenizer_config(files)
    config = {**class_tokens(config, files.optional("config.json") or {}), **config}
    added = {int(t["id"]): t for t in tokenizer.get("added_tokens") or []}
    named = {content(config.get(f"{kind}_token")) for kind in TYPES}
    ids = {t["content"]: i for i, t in added.items()}
    unknown = ids.get(content(config.get("unk_token")), tokenizer["model"].get("unk_id") or 0)

    def kind(i: int, text: str) -> TokenType:
        if i == unknown:
            return TokenType.UNKNOWN
        if text in named or (i in added and added[i].get("special")):
            return TokenType.CONTROL
        return TokenType.USER_DEFINED if i in added else TokenType.NORMAL

    table = _padded(max(size or 0, len(vocab)))
    _set(table, ((i, (t, float(s), kind(i, t))) for i, (t, s) in enumerate(vocab)))
    past = {i: str(t["content"]) for i, t in added.items() if len(vocab) <= i < len(table.tokens)}
    _set(table, ((i, (t, 0.0, kind(i, t))) for i, t in past.items()))
    prefix = config.get("add_prefix_space")
    table.space_prefix = prefix if isinstance(prefix, bool) else prepends_space(tokenizer)
    table.one_space = bool(config.get("clean_up_tokenization_spaces"))
    for step in _steps(tokenizer.get("normalizer")):
        if step.get("type") == "Precompiled" and step.get("precompiled_charsmap"):
            table.charsmap = b64decode(step["precompiled_charsmap"])
    return table


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    """A normalizer, and those in it."""
    if isinstance(step, dict):
        yield step
        yield from (s for s in step.get("normalizers") or [] if isinstance(s, dict))


def _padded(size: int) -> Unigram:
    tokens, types = [f"[PAD{i}]" for i in range(size)], [int(TokenType.UNUSED)] * size
    return Unigram(tokens, [-10000.0] * size, types, True, True, b"")


def _set(table: Unigram, entries: Any) -> None:
    """Put (id, (text, score, type)) in; a line says how many are past the end."""
    beyond = 0
    for i, (text, score, kind) in entries:
        if i < len(table.tokens):
            table.tokens[i], table.scores[i], table.types[i] = text, score, int(kind)
        else:
            beyond += 1
    if beyond:
        size = len(table.tokens)
        table.notes.append(f"{beyond} pieces past the model's {size} tokens are left out")


def _message(data: Any) -> dict[int, Any]:
    """The fields of a protobuf message by number: whole numbers and bytes, the last of each."""
    fields: dict[int, Any] = {}
    at, end = 0, len(data) if isinstance(data, bytes) else 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < end and shift < 64:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        return value

    while at < end:
        number, wire = divmod(varint(), 8)
        if wire == 0:
            fields[number] = varint()
        elif wire == 2:
            size = varint()
            fields[number], at = data[at : at + size], at + size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            break
    return fields
