"""The vocabulary of a checkpoint as llama.cpp keeps it: tokens, scores, types, merges.

Three kinds, tried in the order of llama.cpp's converter (`conversion/llama.py`, set_vocab):

1. `tokenizer.model`: a SentencePiece vocabulary, as it is.
2. `tokenizer.json` with byte fallback: a SentencePiece vocabulary that lost its scores. llama.cpp
   gives every piece the same one and then splits text differently from the model; here they are
   derived from the merges.
3. any other BPE `tokenizer.json`: byte-level BPE with its merges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint import read_json
from quantkit.errors import TokenizerError
from quantkit.pretokenizer import find_pre
from quantkit.special_tokens import SpecialTokens, read_merges, read_special_tokens

if TYPE_CHECKING:
    from gguf import GGUFWriter


class TokenType(IntEnum):
    """llama.cpp's token types (llama.h `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPACE = "\u2581"  # SentencePiece's visible space
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass
class Vocabulary:
    """One vocabulary. `scores` is None for BPE, `merges` is None for SentencePiece."""

    model: str  # tokenizer.ggml.model: "llama" or "gpt2"
    pre: str  # tokenizer.ggml.pre
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    special: SpecialTokens = field(default_factory=SpecialTokens)
    notes: list[str] = field(default_factory=list)

    def write(self, writer: GGUFWriter) -> None:
        """Add the vocabulary's keys, in llama.cpp's order."""
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        for kind, token_id in self.special.ids.items():
            getattr(writer, f"add_{kind}_token_id")(token_id)
        for kind, flag in self.special.add.items():
            if add := getattr(writer, f"add_add_{kind}_token", None):
                add(flag)
        if self.special.chat_template is not None:
            writer.add_chat_template(self.special.chat_template)


def read_vocabulary(directory: Path, vocab_size: int, pre: str | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint directory, padded to `vocab_size` tokens.

    `pre` overrules the name of a BPE pre-tokenizer. Raises TokenizerError, CorruptFile.
    """
    if (directory / "tokenizer.model").is_file():
        return _sentencepiece(directory, vocab_size)
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{directory}: neither tokenizer.model nor tokenizer.json is there")
    tokenizer = read_json(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise TokenizerError(f"{path}: a {kind} tokenizer; BPE and SentencePiece are read")
    if not isinstance(model.get("vocab"), dict) or not all(
        isinstance(i, int) and i >= 0 for i in model["vocab"].values()
    ):
        raise TokenizerError(f"{path}: its vocabulary is not a table of pieces and ids")
    if model.get("byte_fallback"):
        return _from_merges(directory, tokenizer, vocab_size)
    return _byte_level(directory, tokenizer, vocab_size, pre)


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def looks_special(token: str) -> bool:
    """Tokens that act as control tokens though their files do not say so (llama.cpp's list)."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<\uff5c") and token.endswith("\uff5c>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def _added(token: str, special: bool) -> tuple[str, TokenType]:
    if special or looks_special(token):
        return token, TokenType.CONTROL
    return token.replace(SPACE, " "), TokenType.USER_DEFINED  # llama.cpp wants it normalized


# --- SentencePiece ----------------------------------------------------------------------------


def _sentencepiece(directory: Path, vocab_size: int) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    path = directory / "tokenizer.model"
    sp = SentencePieceProcessor()
    try:
        sp.LoadFromFile(str(path))
    except (RuntimeError, OSError) as e:
        raise TokenizerError(f"{path}: not a SentencePiece model ({str(e).strip()})") from None

    def piece(i: int) -> tuple[str, float, TokenType]:
        kind = TokenType.NORMAL
        for test, found in (
            (sp.IsUnknown, TokenType.UNKNOWN), (sp.IsControl, TokenType.CONTROL),
            (sp.IsUnused, TokenType.UNUSED), (sp.IsByte, TokenType.BYTE),
        ):  # fmt: skip
            if test(i):
                kind = found
                break
        return sp.IdToPiece(i), sp.GetScore(i), kind

    pieces = {i: piece(i) for i in range(sp.vocab_size())}
    prefix = _config(directory).get("add_prefix_space")
    return _scored(directory, pieces, vocab_size, prefix, [])


def _from_merges(directory: Path, tokenizer: dict[str, Any], vocab_size: int) -> Vocabulary:
    """A tokenizer.json that was a SentencePiece model once.

    SentencePiece joins the neighbours whose joint piece has the best score; a BPE tokenizer joins
    those whose merge stands first. So the n-th piece that a merge makes gets the score -n, and the
    pieces that no merge makes follow in the order of their ids, as in the original.
    """
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    added = [t for t in tokenizer.get("added_tokens") or [] if isinstance(t, dict)]
    specials = {t["content"] for t in added if t.get("special")}
    unknown = tokenizer["model"].get("unk_token") or _content(_config(directory).get("unk_token"))

    merged: dict[str, None] = {}
    for left, _, right in (m.partition(" ") for m in read_merges(tokenizer)):
        merged.setdefault((left + right).replace("\u0120", " "))
    outside = {t["content"] for t in added} | {p for p in vocab if _BYTE.fullmatch(p)}
    plain = (p for p, _ in sorted(vocab.items(), key=lambda item: item[1]))
    ranked = [*merged, *(p for p in plain if p not in merged and p not in outside)]
    scores = {p: -float(n) for n, p in enumerate(ranked)}

    pieces = {}
    for p, i in vocab.items():
        kind = TokenType.NORMAL
        if p == unknown:
            kind = TokenType.UNKNOWN
        elif _BYTE.fullmatch(p):
            kind = TokenType.BYTE
        elif p in specials:
            kind = TokenType.CONTROL
        pieces[i] = (p, scores.get(p, 0.0), kind)
    for t in added:
        if t["content"] not in vocab:
            text, kind = _added(t["content"], bool(t.get("special")))
            pieces[int(t["id"])] = (text, -1000.0, kind)
    prefix = _config(directory).get("add_prefix_space")
    if prefix is None and not _prepends_space(tokenizer):
        prefix = False
    note = f"scores of {len(merged)} pieces derived from the merges of tokenizer.json"
    return _scored(directory, pieces, vocab_size, prefix, [note])


def _content(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _prepends_space(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer puts a space before the text, as SentencePiece does by default."""
    steps = []
    for name, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        step = tokenizer.get(name) or {}
        steps += step.get(inner, [step])
    return any(
        s.get("type") == "Prepend"
        or (s.get("type") == "Metaspace" and s.get("prepend_scheme", "always") != "never")
        for s in steps
    )


def _scored(
    directory: Path, pieces: dict[int, tuple[str, float, TokenType]], vocab_size: int,
    prefix: Any, notes: list[str],
) -> Vocabulary:  # fmt: skip
    """Pieces, then what added_tokens.json and tokenizer_config.json say of single ids, padded.

    llama.cpp `conversion/base.py`, _create_vocab_sentencepiece.
    """
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    scores = [-10000.0] * vocab_size
    types = [int(TokenType.UNUSED)] * vocab_size

    def put(i: int, token: str, score: float, kind: TokenType) -> None:
        if 0 <= i < vocab_size:
            tokens[i], scores[i], types[i] = token, score, int(kind)

    for i, (token, score, kind) in pieces.items():
        put(i, token, score, kind)
    extra = directory / "added_tokens.json"
    for token, i in (read_json(extra) if extra.is_file() else {}).items():
        put(int(i), token, -1000.0, TokenType.USER_DEFINED)
    for i, entry in (_config(directory).get("added_tokens_decoder") or {}).items():
        token, kind = _added(entry["content"], bool(entry.get("special")))
        put(int(i), token, -1000.0, kind)
    dropped = sum(i >= vocab_size for i in pieces)
    if dropped:
        notes.append(f"{dropped} pieces past the model's {vocab_size} tokens are left out")
    special = read_special_tokens(directory, n_vocab=vocab_size)
    return Vocabulary(
        "llama", "default", tokens, types, scores,
        add_space_prefix=prefix if isinstance(prefix, bool) else None,
        special=special, notes=notes,
    )  # fmt: skip


# --- byte-level BPE -----------------------------------------------------------------------------


def _byte_level(
    directory: Path, tokenizer: dict[str, Any], vocab_size: int, pre: str | None
) -> Vocabulary:
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    name, why = (pre, "given") if pre else find_pre(tokenizer, path)
    try:
        hf = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
        raise TokenizerError(f"{path}: {e}") from None
    by_id = {i: token for token, i in hf.get_vocab(with_added_tokens=True).items()}
    if by_id and max(by_id) >= vocab_size:
        raise TokenizerError(
            f"{path}: token id {max(by_id)} is past config.json's vocab_size {vocab_size}"
        )
    added = hf.get_added_tokens_decoder()
    tokens, types = [], []
    for i in range(vocab_size):
        token, kind = by_id.get(i), TokenType.NORMAL
        if token is None:
            token, kind = f"[PAD{i}]", TokenType.UNUSED
        elif i in added:
            if not added[i].normalized:
                ids = hf.encode(token, add_special_tokens=False).ids
                token = hf.decode(ids, skip_special_tokens=False)
            token, kind = _added(token, added[i].special)
        tokens.append(token)
        types.append(int(kind))
    return Vocabulary(
        "gpt2", name, tokens, types, merges=read_merges(tokenizer),
        special=read_special_tokens(directory), notes=[f"pre-tokenizer {name}: {why}"],
    )  # fmt: skip


def named_ids(special: SpecialTokens, ids: Iterable[tuple[str, int]]) -> None:
    """Give special tokens fixed ids, where they have none yet."""
    for kind, token_id in ids:
        special.ids.setdefault(kind, token_id)
