"""SentencePiece vocabularies, from `tokenizer.model` or a tokenizer.json that was made of one.

Facts of llama.cpp's `conversion/base.py` (_create_vocab_sentencepiece) and of the `set_vocab`
methods of families that add tokens in their own way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantkit.errors import TokenizerError
from quantkit.progress import Detail
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.storage.os_files import muted
from quantkit.tokenizer.added_tokens import loaded
from quantkit.tokenizer.class_tokens import class_tokens
from quantkit.tokenizer.families import AddedTokens
from quantkit.tokenizer.special_tokens import content, read_merges, tokenizer_config
from quantkit.tokenizer.token_types import SPACE, TokenType, added

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# an empty text in C++; what llama.cpp's converter writes in InternLM's vocabulary instead
_VISIBLE_NUL = "\U0001f409"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
Piece = tuple[str, float, TokenType]


@dataclass
class Pieces:
    """Text, score and type of every token id. `space_prefix` is False where no space is put before
    the text; `puts_space` is what tokenizer.model says of it."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    space_prefix: bool | None = None
    puts_space: bool | None = None
    pre: str = "default"
    notes: list[str] = field(default_factory=list)


def from_model(
    files: CheckpointFiles, size: int | None, style: AddedTokens, unused: str = ""
) -> Pieces:
    """`tokenizer.model`, padded or cut to `size` tokens; pieces that begin with `unused` are
    UNUSED. Raises TokenizerError."""
    pieces, sp = read_pieces(files, "tokenizer.model")
    if unused:
        pieces = [
            (_VISIBLE_NUL if p == "\0" else p, s, TokenType.UNUSED if p.startswith(unused) else t)
            for p, s, t in pieces
        ]
    by_id = dict(enumerate(pieces))
    if not tokenizer_config(files).get("added_tokens_decoder"):  # transformers 5 writes none
        _set_added(by_id, files.optional("tokenizer.json") or {})
    table = _with_added(files, by_id, size, style)
    table.puts_space = sp.EncodeAsPieces("a")[0].startswith(SPACE)
    return table


# after the pieces of ChatGLM's, whatever its files say
_CHATGLM = (
    "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>",
)  # fmt: skip


def chatglm(files: CheckpointFiles, size: int | None) -> Pieces:
    """ChatGLM 2's and 3's `tokenizer.model`, and the tokens that its class adds. Raises
    TokenizerError."""
    pieces, _ = read_pieces(files, "tokenizer.model")
    names = enumerate(("<unk>", "<bos>", "<eos>"))
    by_id = dict(enumerate(pieces)) | {i: (name, *pieces[i][1:]) for i, name in names}
    by_id |= {len(pieces) + i: (t, 0.0, TokenType.CONTROL) for i, t in enumerate(_CHATGLM)}
    for i in range(len(by_id), size or 0):
        by_id[i] = (f"[PAD{i}]", 0.0, TokenType.UNUSED)
    table = _with_added(files, by_id, size, AddedTokens(files=()))
    table.pre = "chatglm-spm"
    return table


@muted()
def read_pieces(files: CheckpointFiles, name: str) -> tuple[list[Piece], SentencePieceProcessor]:
    """Every piece of a SentencePiece model, and the model. Raises TokenizerError."""
    from sentencepiece import SentencePieceProcessor

    sp = SentencePieceProcessor()
    try:
        sp.LoadFromSerializedProto(files.data(name))
    except RuntimeError as e:
        reason = f"not a SentencePiece model ({str(e).strip()})"
        raise TokenizerError(f"{files.label(name)}: {reason}") from None

    def piece(i: int) -> Piece:
        tests = (
            (sp.IsUnknown, TokenType.UNKNOWN),
            (sp.IsControl, TokenType.CONTROL),
            (sp.IsUnused, TokenType.UNUSED),
            (sp.IsByte, TokenType.BYTE),
        )
        kind = next((kind for test, kind in tests if test(i)), TokenType.NORMAL)
        return sp.IdToPiece(i), sp.GetScore(i), kind

    return [piece(i) for i in range(sp.vocab_size())], sp


def has_bytes(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json has a piece for every byte, as SentencePiece's byte fallback."""
    vocab = tokenizer["model"]["vocab"]
    return bool(tokenizer["model"].get("byte_fallback")) or all(
        f"<0x{byte:02X}>" in vocab for byte in range(256)
    )


def from_merges(
    files: CheckpointFiles, tokenizer: dict[str, Any], size: int | None, style: AddedTokens
) -> Pieces:
    """A tokenizer.json that was made of a SentencePiece model, with scores derived from its merges.

    SentencePiece joins the neighbours whose joint piece has the best score; a BPE tokenizer joins
    those whose merge stands first. So the n-th piece that a merge makes gets the score -n, and the
    pieces that no merge makes follow in the order of their ids, as in the original.

    Runs of spaces among the added tokens stay pieces, which merges make: the tokenizer looks for
    their visible spaces in the text as it is, and so never finds them there. Only where their
    merges are the first of all that have a space (Gemma's), so that a run is never taken apart, and
    no space is put before what follows them, are they USER_DEFINED, as in Gemma's tokenizer.model.
    """
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    extra = [t for t in tokenizer.get("added_tokens") or [] if isinstance(t, dict)]
    config = tokenizer_config(files)
    unknown = tokenizer["model"].get("unk_token") or content(config.get("unk_token"))

    merged: dict[str, None] = {}
    for merge in read_merges(tokenizer, files.label("tokenizer.json")):
        left, _, right = merge.partition(" ")
        merged.setdefault((left + right).replace("\u0120", " "))
    spaces = {
        t["content"] for t in extra if SPACE in t["content"] and not t.get("normalized", True)
    }
    if _come_first(spaces, merged) and not prepends_space(tokenizer):
        spaces = set()
    outside = {t["content"] for t in extra} | {p for p in vocab if _BYTE.fullmatch(p)}
    outside -= spaces
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
        pieces[i] = (p, scores.get(p, 0.0), kind)
    made = {i: pieces[i] for p, i in vocab.items() if p in spaces}
    for i, token in loaded(files, tokenizer).items():
        if i not in pieces or pieces[i][2] == TokenType.NORMAL:
            text, kind_of = _typed(token.content, token.special, style)
            pieces[i] = (text, pieces[i][1] if i in pieces else style.score, kind_of)
    table = _with_added(files, {**pieces, **made}, size, AddedTokens(files=()))
    table.notes.insert(
        0, Detail(f"scores of {len(merged)} pieces derived from the merges of tokenizer.json")
    )
    if not prepends_space(tokenizer):
        table.space_prefix = False
    return table


def _come_first(runs: Collection[str], merged: Iterable[str]) -> bool:
    """Whether merges make all of the runs before anything else that has a space."""
    first = [p for p, _ in zip((p for p in merged if SPACE in p), runs, strict=False)]
    return {*first} == {*runs}


def of_merges_alone(files: CheckpointFiles, tokenizer: dict[str, Any], size: int | None) -> Pieces:
    """A tokenizer.json whose merges join the pieces in llama.cpp too (Gemma 4): every score is the
    same. Tokens are CONTROL where tokenizer_config.json names them; whatever else is added to the
    vocabulary is USER_DEFINED (gguf-py `vocab.py`, LlamaHfVocab), and so are added tokens that are
    pieces as well and that no merge makes, where llama.cpp's converter loses them."""
    config = tokenizer_config(files)
    config = {**class_tokens(config, files.optional("config.json") or {}), **config}
    named = {content(value) for key, value in config.items() if key.endswith("_token")}
    for kind in ("extra", "additional", "model_specific"):
        found = config.get(f"{kind}_special_tokens") or []
        named |= {content(t) for t in (found.values() if isinstance(found, dict) else found)}
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = loaded(files, tokenizer)
    if not tokenizer_config(files):  # no file names any
        named |= {t.content for t in tokens.values() if t.special}
    more = {t.content: i for i, t in tokens.items()}
    merges = read_merges(tokenizer, files.label("tokenizer.json"))
    merged = {left + right for left, _, right in (merge.partition(" ") for merge in merges)}
    lost = {p for p in more if p in vocab and len(p) > 1 and p not in merged and SPACE not in p}
    pieces: dict[int, Piece] = {}
    for p, i in {**more, **vocab}.items():
        kind_of = TokenType.NORMAL if p in vocab else TokenType.USER_DEFINED
        if p in lost:
            kind_of = TokenType.USER_DEFINED
        if p in named:
            kind_of = TokenType.CONTROL
        elif _BYTE.fullmatch(p):
            kind_of = TokenType.BYTE
        pieces[i] = (p, -1000.0, kind_of)
    table = _with_added(files, pieces, size, AddedTokens(files=()))
    table.scores = [-1000.0] * len(table.scores)
    return table


def prepends_space(tokenizer: Mapping[str, Any]) -> bool:
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


def _set_added(pieces: dict[int, Piece], tokenizer: dict[str, Any]) -> None:
    """Give the added tokens of a tokenizer.json their types, those that are pieces as well too.

    As ordinary pieces they would be put together from others, and never where the text around them
    does not allow it.
    """
    for t in tokenizer.get("added_tokens") or []:
        i = int(t["id"])
        if i not in pieces or pieces[i][2] == TokenType.NORMAL:
            text, kind = added(t["content"], bool(t.get("special")))
            pieces[i] = (text, pieces[i][1] if i in pieces else -1000.0, kind)


def _with_added(
    files: CheckpointFiles,
    pieces: dict[int, Piece],
    size: int | None,
    style: AddedTokens,
) -> Pieces:
    """`pieces` by id and the tokens that other files add or change, padded or cut to `size`."""
    size = 1 + max(pieces, default=-1) if size is None else size
    table = Pieces(
        [f"[PAD{i}]" for i in range(size)], [-10000.0] * size, [int(TokenType.UNUSED)] * size
    )
    every = [*((i, *p) for i, p in pieces.items()), *_added_tokens(files, style)]
    for i, token, score, kind in every:
        if 0 <= i < size:
            table.tokens[i], table.scores[i], table.types[i] = token, score, int(kind)
    if beyond := len({i for i, *_ in every if i >= size}):
        table.notes.append(f"{beyond} pieces past the model's {size} tokens are left out")
    return table


def _added_tokens(
    files: CheckpointFiles, style: AddedTokens
) -> Iterator[tuple[int, str, float, TokenType]]:
    """(id, text, score, type) of the tokens that other files add, later files last."""
    for name in style.files:
        data = files.optional(name) or {}
        if name == "added_tokens.json":
            for token, i in data.items():
                if int(i) < 0:
                    raise TokenizerError(f"{files.label(name)}: {token!r} has the id {i}")
                yield int(i), token, style.score, TokenType.USER_DEFINED
            continue
        if name == "tokenizer.json":
            entries = [(t["id"], t) for t in data.get("added_tokens") or []]
        else:
            entries = list((data.get("added_tokens_decoder") or {}).items())
        for i, entry in entries:
            token, special = str(entry["content"]), bool(entry.get("special"))
            token, kind = _typed(token, special, style)
            if style.unknown and special and token == content(data.get("unk_token")):
                kind = TokenType.UNKNOWN
            yield int(i), token, style.special_score if special else style.score, kind


def _typed(token: str, special: bool, style: AddedTokens) -> tuple[str, TokenType]:
    """The text and type of an added token, as the family has them."""
    if style.plain:
        return token, TokenType.CONTROL if special else TokenType.USER_DEFINED
    return added(token, special)
