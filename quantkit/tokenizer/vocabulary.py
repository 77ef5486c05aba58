"""The vocabulary of a checkpoint as llama.cpp keeps it: tokens, scores, types, merges.

Tried in the order of llama.cpp's converter (`conversion/llama.py`, set_vocab):

1. `tokenizer.model`: a SentencePiece vocabulary, as it is.
2. `tokenizer.json` with byte fallback: a SentencePiece vocabulary that lost its scores. llama.cpp
   gives every piece the same one and then splits text differently from the model; here they are
   derived from the merges.
3. any other BPE `tokenizer.json`: byte-level BPE with its merges.
4. `vocab.json` with `merges.txt`, and tiktoken ranks: byte-level BPE in older files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import QuantkitError, TokenizerError
from quantkit.storage.json_files import read_json
from quantkit.tokenizer import byte_level, sentencepiece, tiktoken
from quantkit.tokenizer.byte_level import ByteLevel
from quantkit.tokenizer.families import VocabRules
from quantkit.tokenizer.sentencepiece import Pieces
from quantkit.tokenizer.special_tokens import (
    SpecialTokens,
    read_config,
    read_merges,
    read_special_tokens,
)
from quantkit.tokenizer.token_types import TokenType

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass
class Vocabulary:
    """One vocabulary. `scores` is None for byte-level BPE, `merges` is None for SentencePiece.

    `space_prefix` is written first; what `late_...` holds is written last, over what was said
    before. Ids are by kind ("bos", "eot" ...), as are flags (`add_bos_token` ...).
    """

    model: str  # tokenizer.ggml.model: "llama", "gpt2" or "gemma4"
    pre: str  # tokenizer.ggml.pre; "" leaves the key out
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    space_prefix: bool | None = None
    special: SpecialTokens = field(default_factory=SpecialTokens)
    late_ids: dict[str, int] = field(default_factory=dict)
    late_add: dict[str, bool] = field(default_factory=dict)
    late_space_prefix: bool | None = None
    notes: list[str] = field(default_factory=list)

    def write(self, writer: GGUFWriter) -> None:
        """Add the vocabulary's keys, in llama.cpp's order."""
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        writer.add_tokenizer_model(self.model)
        if self.pre:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        _write_ids(writer, self.special.ids)
        _write_flags(writer, self.special.add)
        _write_templates(writer, self.special.templates)
        for name, flag in self.special.normalizer.items():
            writer.add_bool(f"tokenizer.ggml.normalizer.{name}", flag)
        _write_ids(writer, self.late_ids)
        _write_flags(writer, self.late_add)
        if self.late_space_prefix is not None:
            writer.add_add_space_prefix(self.late_space_prefix)


def _write_ids(writer: GGUFWriter, ids: Mapping[str, int]) -> None:
    for kind, token_id in ids.items():
        if add := getattr(writer, f"add_{kind}_token_id", None):  # there is none for "cls"
            add(token_id)


def _write_flags(writer: GGUFWriter, flags: Mapping[str, bool]) -> None:
    for kind, flag in flags.items():
        if add := getattr(writer, f"add_add_{kind}_token", None):
            add(flag)


def _write_templates(writer: GGUFWriter, templates: Mapping[str, str]) -> None:
    """The default template, and the named ones with the list of their names."""
    named = {name: text for name, text in templates.items() if name != "default"}
    for name, text in named.items():
        writer.add_string(f"tokenizer.chat_template.{name}", text)
    if named:
        writer.add_array("tokenizer.chat_templates", sorted(named))
    if "default" in templates:
        writer.add_chat_template(templates["default"])


def read_vocabulary(
    directory: Path, vocab_size: int | None, pre: str | None = None,
    rules: VocabRules | None = None, architecture: str = "",
) -> Vocabulary:  # fmt: skip
    """The vocabulary of a checkpoint directory, padded to `vocab_size` tokens (None: as many as
    there are). `pre` overrules the name of a BPE pre-tokenizer; `rules` are the family's.

    Raises TokenizerError, CorruptFile.
    """
    with malformed(TokenizerError, f"{directory}: malformed tokenizer files"):
        return _read(directory, vocab_size, pre, rules or VocabRules(), architecture)


@contextmanager
def malformed(error: type[QuantkitError], what: str) -> Iterator[None]:
    """Small files in which anything may stand: what trips over their contents is their fault.

    The bodies read and interpret files and do nothing else.
    """
    try:
        yield
    except QuantkitError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split())
        raise error(f"{what} ({type(e).__name__}: {reason})") from e


def _read(
    directory: Path, size: int | None, pre: str | None, rules: VocabRules, architecture: str
) -> Vocabulary:
    if size is not None:
        size = -(-size // rules.round_to) * rules.round_to
    found = _read_tokens(directory, size, pre, rules, architecture)
    if isinstance(found, Pieces):
        vocab = Vocabulary(
            rules.model or "llama", "" if rules.model else "default", found.tokens, found.types,
            found.scores, space_prefix=found.space_prefix, notes=found.notes,
        )  # fmt: skip
        if rules.model:  # such a model joins by merges all the same
            vocab.merges = read_merges(read_json(directory / "tokenizer.json"))
        if pre is not None:
            vocab.notes.append(f"--pre {pre} is of no effect: this vocabulary is SentencePiece's")
        n_vocab = len(vocab.tokens)
        vocab.special = read_special_tokens(directory, n_vocab, rules.template_file_wins)
    else:
        vocab = Vocabulary(
            "gpt2", found.pre, found.tokens, found.types, merges=found.merges, notes=found.notes
        )
        vocab.special = read_special_tokens(directory, None, rules.template_file_wins)
    _apply(rules, vocab, directory)
    if rules.turns_end:
        config = read_json(directory / "config.json")
        ends, bos = config.get("eos_token_id"), config.get("bos_token_id")
        others = [i for i in ends if i != bos] if isinstance(ends, list) else []
        vocab.late_ids |= dict(zip(("eot",), others, strict=False))
    return vocab


def _read_tokens(
    directory: Path, size: int | None, pre: str | None, rules: VocabRules, architecture: str
) -> Pieces | ByteLevel:
    path = directory / "tokenizer.json"
    json_wins = path.is_file() and (rules.model or _is_ranks(directory / "tokenizer.model"))
    if (directory / "tokenizer.model").is_file() and not json_wins:
        return sentencepiece.from_model(directory, size, rules.added)
    if path.is_file():
        tokenizer = read_json(path)
        model = _checked_model(path, tokenizer)
        if model.get("byte_fallback"):
            return sentencepiece.from_merges(directory, tokenizer, size, rules.added)
    elif kind := tiktoken.find(directory):
        return tiktoken.read(directory, kind, size, pre)
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        tokenizer = byte_level.from_vocab_and_merges(directory)
    else:
        raise TokenizerError(f"{directory}: neither tokenizer.model nor tokenizer.json is there")
    return byte_level.from_json(directory, tokenizer, size, pre, rules.pre, architecture)


def _is_ranks(path: Path) -> bool:
    """Whether a tokenizer.model is Llama 3's: tiktoken ranks, which tokenizer.json says as well."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        first = f.readline(200).split()
    return len(first) == 2 and first[1].isdigit()


def _checked_model(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    model = tokenizer.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise TokenizerError(f"{path}: a {kind} tokenizer; BPE and SentencePiece are read")
    if not isinstance(model.get("vocab"), dict) or not all(
        isinstance(i, int) and i >= 0 for i in model["vocab"].values()
    ):
        raise TokenizerError(f"{path}: its vocabulary is not a table of pieces and ids")
    return model


def _model_config(directory: Path) -> dict[str, Any]:
    """config.json, of which the text part counts first."""
    config = read_json(directory / "config.json")
    return {**config, **(config.get("text_config") or {})}


def _apply(rules: VocabRules, vocab: Vocabulary, directory: Path) -> None:
    """The family's differences."""
    ids = {token: i for i, token in reversed([*enumerate(vocab.tokens)])}
    config = read_config(directory)

    def token_id(token: int | str) -> int | None:
        if isinstance(token, int):
            return token
        if token.startswith("{config:"):
            found = _model_config(directory).get(token[len("{config:") : -1])
            return found if isinstance(found, int) else None
        if token.startswith("{"):
            entry = config.get(token[1:-1])
            token = str(entry.get("content") if isinstance(entry, dict) else entry)
        return ids.get(token)

    for kind, token in rules.ids:
        if (i := token_id(token)) is not None:
            vocab.special.ids.setdefault(kind, i)
    for kind, token in rules.late_ids:  # what is there already keeps its place
        if (i := token_id(token)) is not None:
            (vocab.special.ids if kind in vocab.special.ids else vocab.late_ids)[kind] = i
    for kind, flag in rules.add:
        (vocab.special.add if kind in vocab.special.add else vocab.late_add)[kind] = flag
    prefix = config.get("add_prefix_space")
    if rules.config_space_prefix and isinstance(prefix, bool):
        if rules.config_space_prefix == "first":
            vocab.space_prefix = prefix
        else:
            vocab.late_space_prefix = prefix
    if rules.space_prefix is not None:
        vocab.space_prefix, vocab.late_space_prefix = None, rules.space_prefix
    kinds = ((rules.shown, TokenType.USER_DEFINED), (rules.control, TokenType.CONTROL))
    for texts, kind_of in kinds:
        for i in filter(None, map(ids.get, texts)):
            vocab.types[i] = int(kind_of)
