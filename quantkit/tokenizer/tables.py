"""Where the tokens of a checkpoint come from: the first that is there, in the order of llama.cpp's
converter (`conversion/llama.py`, set_vocab).

1. a Unigram model of SentencePiece, in families that have one.
2. `tokenizer.model`: a SentencePiece vocabulary, as it is.
3. `tokenizer.json` with byte pieces and no byte-level step: a SentencePiece vocabulary without its
   scores. llama.cpp gives every piece the same one, and then splits text differently from the
   model; here they are derived from the merges.
4. any other `tokenizer.json`: byte-level BPE with its merges; an encoder's WordPiece or Unigram.
5. tiktoken ranks, `vocab.txt`, or `vocab.json` with `merges.txt`, in older files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer import byte_level, rwkv, sentencepiece, tiktoken, unigram, wordpiece
from quantkit.tokenizer.byte_level import ByteLevel
from quantkit.tokenizer.families import VocabRules
from quantkit.tokenizer.sentencepiece import Pieces
from quantkit.tokenizer.special_tokens import kind_of, tokenizer_config
from quantkit.tokenizer.unigram import Unigram

_UNIGRAM_FILES = {
    "fairseq": ("sentencepiece.bpe.model",),
    "t5": ("tokenizer.model", "spiece.model"),
}


def read_tokens(
    files: CheckpointFiles, size: int | None, pre: str | None, rules: VocabRules, architecture: str
) -> Pieces | ByteLevel | Unigram:
    """The tokens, and what goes with them; arguments as of `read_vocabulary`. Raises
    TokenizerError, CorruptFile."""
    names = _UNIGRAM_FILES.get(rules.unigram.partition(",")[0], ())
    if name := next((n for n in names if files.has(n)), ""):
        if unigram.is_unigram(files, name):
            fairseq, mask = "fairseq" in rules.unigram, "mask" in rules.unigram
            return unigram.from_model(files, name, size, fairseq, mask)
        if name != "tokenizer.model":
            raise TokenizerError(f"{files.label(name)}: it is split by merges, not by scores")
    if rules.world:
        if not files.has(rwkv.FILE):
            raise TokenizerError(f"{files.where}: {rwkv.FILE} is not there")
        return rwkv.read(files, size)
    if rules.chatglm and files.has("tokenizer.model") and not files.has("tokenizer.json"):
        if _holds_ranks(files.data("tokenizer.model")):
            return tiktoken.read(files, tiktoken.CHATGLM, size, pre)
        return sentencepiece.chatglm(files, size)
    json_counts = rules.model or rules.json_first
    if files.has("tokenizer.model") and not (
        files.has("tokenizer.json") and (json_counts or _holds_ranks(files.data("tokenizer.model")))
    ):
        return sentencepiece.from_model(files, size, rules.added, rules.unused)
    if files.has("tokenizer.json"):
        tokenizer = files.json("tokenizer.json")
        kind = _checked_model(tokenizer, files.label("tokenizer.json"), rules)
        if kind == "Unigram":
            return unigram.from_json(files, tokenizer, size)
        if rules.model:
            return sentencepiece.of_merges_alone(files, tokenizer, size)
        if kind == "BPE" and rules.whitespace and _splits_at_spaces(tokenizer):
            return byte_level.whitespace(files, tokenizer, size)
        pieces = sentencepiece.has_bytes(tokenizer) and not byte_level.is_byte_level(tokenizer)
        if kind == "BPE" and pieces and rules.pieces_pre:
            return byte_level.from_json(files, tokenizer, size, pre, rules.pieces_pre, architecture)
        if kind == "BPE" and pieces:
            return sentencepiece.from_merges(files, tokenizer, size, rules.added)
    elif ranks := tiktoken.kind_of(files):
        return tiktoken.read(files, ranks, size, pre)
    elif files.has("vocab.txt") and rules.token_types is not None:
        tokenizer = wordpiece.from_vocab_txt(files)
    elif files.has("vocab.json") and files.has("merges.txt"):
        tokenizer = byte_level.from_vocab_and_merges(files)
    else:
        raise TokenizerError(
            f"{files.where}: neither tokenizer.model nor tokenizer.json is there"
            + _where_it_is(files, rules)
        )
    table = byte_level.from_json(files, tokenizer, size, pre, rules.pre, architecture)
    if table.model == "bert" and not (files.has("tokenizer.json") and tokenizer_config(files)):
        table.ids = wordpiece.special_ids(tokenizer)
    return table


def _where_it_is(files: CheckpointFiles, rules: VocabRules) -> str:
    """What to do about a tokenizer that is not there."""
    if files.has("tekken.json"):
        return (
            " (tekken.json alone is Mistral's own form: the release with tokenizer.json has both)"
        )
    if files.has("tokenizer.model.v3"):
        return "; rename tokenizer.model.v3 to tokenizer.model"
    if rules.lent:
        return (
            f"; the releases of this model use that of {rules.lent}: copy tokenizer* and "
            "special_tokens_map.json from there"
        )
    return "; copy it from the model that this one was made from"


def _holds_ranks(model: bytes) -> bool:
    """Whether a tokenizer.model is tiktoken ranks, as Llama 3's is; its tokenizer.json is the same
    vocabulary."""
    first = model[:200].partition(b"\n")[0].split()
    return len(first) == 2 and first[1].isdigit()


def _splits_at_spaces(tokenizer: Mapping[str, Any]) -> bool:
    step = tokenizer.get("pre_tokenizer")
    return isinstance(step, dict) and step.get("type") == "Whitespace"


def _checked_model(tokenizer: Mapping[str, Any], label: str, rules: VocabRules) -> str:
    """The kind of the `model` of a tokenizer.json: BPE with a vocabulary, or what the family has
    besides. Raises TokenizerError."""
    model = tokenizer.get("model")
    kind = kind_of(model) if isinstance(model, dict) else None
    encoder = rules.token_types is not None
    others = {"WordPiece": encoder, "Unigram": encoder or bool(rules.unigram)}
    if not isinstance(model, dict) or (kind != "BPE" and not others.get(str(kind))):
        raise TokenizerError(f"{label}: a {kind} tokenizer; BPE and SentencePiece are read")
    if kind == "Unigram":
        return "Unigram"
    if not isinstance(model.get("vocab"), dict) or not all(
        isinstance(i, int) and i >= 0 for i in model["vocab"].values()
    ):
        raise TokenizerError(f"{label}: its vocabulary is not a table of pieces and ids")
    by_id: dict[int, str] = {}
    for text, i in model["vocab"].items():
        if by_id.setdefault(i, text) != text:
            raise TokenizerError(f"{label}: {by_id[i]!r} and {text!r} have the same id, {i}")
    return str(kind)
