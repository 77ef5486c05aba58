"""SentencePiece vocabularies, from `tokenizer.model` or from the tokenizer.json that it became.

llama.cpp `conversion/base.py`, _create_vocab_sentencepiece, and the `set_vocab` of the families
that add tokens in their own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import TokenizerError
from quantkit.storage.json_files import read_json
from quantkit.tokenizer.families import AddedTokens
from quantkit.tokenizer.special_tokens import read_config, read_merges
from quantkit.tokenizer.token_types import SPACE, TokenType, added

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# an empty text in C++; what llama.cpp's converter writes in InternLM's vocabulary instead
_VISIBLE_NUL = "\U0001f409"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
Piece = tuple[str, float, TokenType]


@dataclass
class Pieces:
    """Every id's text, score and type. `space_prefix` is False where the text gets none;
    `puts_space` is what tokenizer.model says of it."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    space_prefix: bool | None = None
    puts_space: bool | None = None
    notes: list[str] = field(default_factory=list)


def from_model(
    directory: Path, size: int | None, style: AddedTokens, unused: str = ""
) -> Pieces:  # fmt: skip
    """`tokenizer.model`, padded or cut to `size`; pieces that begin with `unused` are UNUSED.
    Raises TokenizerError."""
    pieces, sp = read_pieces(directory / "tokenizer.model")
    if unused:
        pieces = [
            (_VISIBLE_NUL if p == "\0" else p, s, TokenType.UNUSED if p.startswith(unused) else t)
            for p, s, t in pieces
        ]
    out = _with_added(directory, dict(enumerate(pieces)), size, style)
    out.puts_space = sp.EncodeAsPieces("a")[0].startswith(SPACE)
    return out


def read_pieces(path: Path) -> tuple[list[Piece], SentencePieceProcessor]:
    """Every piece of a SentencePiece model, and the model. Raises TokenizerError."""
    from sentencepiece import SentencePieceProcessor

    sp = SentencePieceProcessor()
    try:
        sp.LoadFromFile(str(path))
    except (RuntimeError, OSError) as e:
        raise TokenizerError(f"{path}: not a SentencePiece model ({str(e).strip()})") from None

    def piece(i: int) -> Piece:
        kind = TokenType.NORMAL
        for test, found in (
            (sp.IsUnknown, TokenType.UNKNOWN), (sp.IsControl, TokenType.CONTROL),
            (sp.IsUnused, TokenType.UNUSED), (sp.IsByte, TokenType.BYTE),
        ):  # fmt: skip
            if test(i):
                kind = found
                break
        return sp.IdToPiece(i), sp.GetScore(i), kind

    return [piece(i) for i in range(sp.vocab_size())], sp


def from_merges(
    directory: Path, tokenizer: dict[str, Any], size: int | None, style: AddedTokens
) -> Pieces:
    """A tokenizer.json that was a SentencePiece model once.

    SentencePiece joins the neighbours whose joint piece has the best score; a BPE tokenizer joins
    those whose merge stands first. So the n-th piece that a merge makes gets the score -n, and the
    pieces that no merge makes follow in the order of their ids, as in the original.
    """
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    extra = [t for t in tokenizer.get("added_tokens") or [] if isinstance(t, dict)]
    specials = {t["content"] for t in extra if t.get("special")}
    unknown = tokenizer["model"].get("unk_token") or _content(
        read_config(directory).get("unk_token")
    )

    merged: dict[str, None] = {}
    for left, _, right in (m.partition(" ") for m in read_merges(tokenizer)):
        merged.setdefault((left + right).replace("\u0120", " "))
    outside = {t["content"] for t in extra} | {p for p in vocab if _BYTE.fullmatch(p)}
    plain = (p for p, _ in sorted(vocab.items(), key=lambda item: item[1]))
    ranked = [*merged, *(p for p in plain if p not in merged and p not in outside)]
    scores = {p: -float(n) for n, p in enumerate(ranked)}

    pieces: dict[int, Piece] = {}
    for p, i in vocab.items():
        kind = TokenType.NORMAL
        if p == unknown:
            kind = TokenType.UNKNOWN
        elif _BYTE.fullmatch(p):
            kind = TokenType.BYTE
        elif p in specials:
            kind = TokenType.CONTROL
        pieces[i] = (p, scores.get(p, 0.0), kind)
    for t in extra:
        if t["content"] not in vocab:
            text, kind = added(t["content"], bool(t.get("special")))
            pieces[int(t["id"])] = (text, -1000.0, kind)
    out = _with_added(directory, pieces, size, style)
    out.notes.insert(0, f"scores of {len(merged)} pieces derived from the merges of tokenizer.json")
    if not _prepends_space(tokenizer):
        out.space_prefix = False
    return out


def of_merges_alone(directory: Path, tokenizer: dict[str, Any], size: int | None) -> Pieces:
    """A tokenizer.json whose merges join the pieces in llama.cpp too (Gemma 4): every score is the
    same. Tokens are CONTROL where tokenizer_config.json names them; whatever else is added to the
    vocabulary is USER_DEFINED (gguf-py `vocab.py`, LlamaHfVocab)."""
    config = read_config(directory)
    named = {_content(value) for key, value in config.items() if key.endswith("_token")}
    for key in (
        "extra_special_tokens",
        "additional_special_tokens",
        "model_specific_special_tokens",
    ):
        found = config.get(key) or []
        named |= {_content(t) for t in (found.values() if isinstance(found, dict) else found)}
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    more = {t["content"]: int(t["id"]) for t in tokenizer.get("added_tokens") or []}
    pieces: dict[int, Piece] = {}
    for p, i in {**more, **vocab}.items():
        kind = TokenType.NORMAL if p in vocab else TokenType.USER_DEFINED
        if p in named:
            kind = TokenType.CONTROL
        elif _BYTE.fullmatch(p):
            kind = TokenType.BYTE
        pieces[i] = (p, -1000.0, kind)
    out = _with_added(directory, pieces, size, AddedTokens(files=()))
    out.scores = [-1000.0] * len(out.scores)
    return out


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


def _with_added(
    directory: Path, pieces: dict[int, Piece], size: int | None, style: AddedTokens
) -> Pieces:
    """Pieces, then what the other files say of single ids, padded to `size` tokens."""
    size = 1 + max(pieces, default=-1) if size is None else size
    out = Pieces(
        [f"[PAD{i}]" for i in range(size)], [-10000.0] * size, [int(TokenType.UNUSED)] * size
    )
    every = [*((i, *p) for i, p in pieces.items()), *_added_tokens(directory, style)]
    for i, token, score, kind in every:
        if 0 <= i < size:
            out.tokens[i], out.scores[i], out.types[i] = token, score, int(kind)
    if beyond := len({i for i, *_ in every if i >= size}):
        out.notes.append(f"{beyond} pieces past the model's {size} tokens are left out")
    return out


def _added_tokens(
    directory: Path, style: AddedTokens
) -> Iterator[tuple[int, str, float, TokenType]]:
    for name in style.files:
        path = directory / name
        data = read_json(path) if path.is_file() else {}
        if name == "added_tokens.json":
            for token, i in data.items():
                yield int(i), token, style.score, TokenType.USER_DEFINED
            continue
        if name == "tokenizer.json":
            entries = [(t["id"], t) for t in data.get("added_tokens") or []]
        else:
            entries = list((data.get("added_tokens_decoder") or {}).items())
        for i, entry in entries:
            token, special = str(entry["content"]), bool(entry.get("special"))
            if not style.plain:
                token, kind = added(token, special)
            elif not special:
                kind = TokenType.USER_DEFINED
            elif style.unknown and token == _content(data.get("unk_token")):
                kind = TokenType.UNKNOWN
            else:
                kind = TokenType.CONTROL
            yield int(i), token, style.special_score if special else style.score, kind
