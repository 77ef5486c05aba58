"""The vocabulary of a checkpoint as llama.cpp keeps it: tokens, scores, types, merges.

Where the tokens come from is in `tables.py`. Encoders have two more kinds than language models:
WordPiece (`wordpiece.py`) and Unigram (`unigram.py`).

A `tekken.json` alone, and the files of Mistral's own format, are a vocabulary with an order of keys
of its own (`mistral.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quantkit.errors import TokenizerError, malformed
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer import mistral, plamo
from quantkit.tokenizer.added_tokens import loaded
from quantkit.tokenizer.byte_level import is_byte_level
from quantkit.tokenizer.edges import edges
from quantkit.tokenizer.families import VocabRules
from quantkit.tokenizer.not_done import check_affixes, not_done
from quantkit.tokenizer.past_the_end import left_out
from quantkit.tokenizer.sentencepiece import Pieces
from quantkit.tokenizer.special_tokens import (
    SpecialTokens,
    content,
    flags_of_added,
    own_template,
    read_merges,
    read_special_tokens,
    tokenizer_config,
    unused_template,
)
from quantkit.tokenizer.tables import read_tokens
from quantkit.tokenizer.token_types import TokenType
from quantkit.tokenizer.unigram import Unigram

if TYPE_CHECKING:
    from gguf import GGUFWriter


_MOST_TYPES = 64  # more than any encoder has


@dataclass
class Vocabulary:
    """One vocabulary. `scores` is None for byte-level BPE, `merges` is None for SentencePiece.

    `space_prefix` is written first, `middle_space_prefix` after the tokens. The `late_...` fields
    are written last: a key that is there already takes their value. `token_types`: an encoder's,
    which each kind of vocabulary has at a place of its own. Ids and flags (`add_bos_token`
    ...) are by kind: "bos", "eot" ... A vocabulary `of_mistral` has its keys in another order.
    """

    model: str  # tokenizer.ggml.model: "llama", "gpt2", "gemma4", "bert", "t5", "rwkv" ...
    pre: str  # tokenizer.ggml.pre; "" leaves the key out
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    space_prefix: bool | None = None
    middle_space_prefix: bool | None = None
    special: SpecialTokens = field(default_factory=SpecialTokens)
    late_ids: dict[str, int] = field(default_factory=dict)
    late_add: dict[str, bool] = field(default_factory=dict)
    late_space_prefix: bool | None = None
    notes: list[str] = field(default_factory=list)
    of_mistral: bool = False
    token_types: int | None = None
    first_add: dict[str, bool] = field(default_factory=dict)
    one_space: bool | None = None
    charsmap: bytes = b""

    def write(self, writer: GGUFWriter) -> None:
        """Add the vocabulary's keys, in llama.cpp's order."""
        if self.of_mistral:
            self._write_mistral(writer)
            return
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        _write_flags(writer, self.first_add)
        if self.model == "bert":
            self._write_token_types(writer)
        writer.add_tokenizer_model(self.model)
        if self.pre:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.middle_space_prefix is not None:
            writer.add_add_space_prefix(self.middle_space_prefix)
        if self.model == "t5":
            self._write_token_types(writer)
        if self.one_space is not None:
            writer.add_remove_extra_whitespaces(self.one_space)
        if self.charsmap:
            writer.add_precompiled_charsmap(self.charsmap)
        if self.merges:
            writer.add_token_merges(self.merges)
        _write_ids(writer, self.special.ids)
        if self.model in plamo.MODELS.values():
            writer.add_add_space_prefix(False)
        _write_flags(writer, self.special.add)
        _write_templates(writer, self.special.templates)
        for name in ("lowercase", "strip_accents"):
            if (flag := self.special.normalizer.get(name)) is not None:
                writer.add_bool(f"tokenizer.ggml.normalizer.{name}", flag)
        _write_ids(writer, self.late_ids)
        _write_flags(writer, self.late_add)
        if self.late_space_prefix is not None:
            writer.add_add_space_prefix(self.late_space_prefix)
        if self.model not in ("bert", "t5"):
            self._write_token_types(writer)

    def _write_token_types(self, writer: GGUFWriter) -> None:
        if self.token_types is not None:
            writer.add_token_type_count(self.token_types)

    def _write_mistral(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        if self.pre:
            writer.add_tokenizer_pre(self.pre)
            writer.add_token_merges(self.merges or [])
        _write_ids(writer, self.special.ids)
        writer.add_token_list(self.tokens)
        writer.add_token_scores(self.scores or [])
        writer.add_token_types(self.types)
        writer.add_vocab_size(len(self.tokens))
        _write_flags(writer, self.special.add)
        _write_templates(writer, self.special.templates)


def _write_ids(writer: GGUFWriter, ids: Mapping[str, int]) -> None:
    for kind, token_id in ids.items():
        if add := getattr(writer, f"add_{kind}_token_id", None):  # gguf has none for "cls"
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
    files: CheckpointFiles,
    vocab_size: int | None,
    pre: str | None = None,
    rules: VocabRules | None = None,
    architecture: str = "",
) -> Vocabulary:
    """The vocabulary of a checkpoint, padded to `vocab_size` tokens (None: as many as there are).

    `pre` names a BPE pre-tokenizer, which is recognised otherwise; `rules` are the family's.
    Raises TokenizerError, CorruptFile.
    """
    with malformed(TokenizerError, f"{files.where}: malformed tokenizer files"):
        return _read(files, vocab_size, pre, rules or VocabRules(), architecture)


def _read(
    files: CheckpointFiles, size: int | None, pre: str | None, rules: VocabRules, architecture: str
) -> Vocabulary:
    if size is not None:
        size = -(-size // rules.round_to) * rules.round_to
    if rules.model and is_byte_level(files.optional("tokenizer.json") or {}):
        rules = VocabRules()  # another model's, and as its files say
    own = architecture == mistral.FORMAT
    if own or (rules.tekken and mistral.alone(files)):
        return _of_mistral(mistral.read(files, size, template_file=own))
    if rules.plamo:
        return _of_plamo(files, size, rules)
    table = read_tokens(files, size, pre, rules, architecture)
    if isinstance(table, Pieces):
        rules = replace(rules, ids=()) if rules.chatglm else rules
        vocab = Vocabulary(
            rules.model or "llama",
            "" if rules.model else table.pre,
            table.tokens,
            table.types,
            table.scores,
            space_prefix=table.space_prefix,
            notes=table.notes,
        )
        if rules.model:  # llama.cpp joins by merges in such a model
            vocab.merges = read_merges(files.json("tokenizer.json"), files.label("tokenizer.json"))
        if rules.model_space_prefix:
            vocab.middle_space_prefix = table.puts_space
        if pre is not None:
            vocab.notes.append(f"--pre {pre} is of no effect: this vocabulary is SentencePiece's")
    elif isinstance(table, Unigram):
        vocab = Vocabulary(
            "t5",
            "default",
            table.tokens,
            table.types,
            table.scores,
            middle_space_prefix=table.space_prefix,
            notes=table.notes,
            one_space=table.one_space,
            charsmap=table.charsmap,
        )
    else:
        vocab = Vocabulary(
            table.model, table.pre, table.tokens, table.types, merges=table.merges,
            notes=table.notes,
        )  # fmt: skip
        vocab.special.ids.update(table.ids)
    vocab.token_types, vocab.first_add = _token_types(rules, files), dict(rules.first_add)
    n_vocab = len(vocab.tokens)
    special = read_special_tokens(files, n_vocab, rules.template_file_wins)
    special.ids = {**vocab.special.ids, **special.ids}
    vocab.special = special
    if rules.template:
        special.templates["default"] = rules.template
    if rules.own_template and not (
        files.has("chat_template.jinja") if rules.template_file_wins else special.templates
    ):
        special.templates["default"] = own_template(rules.own_template, files.name)
    _apply(rules, vocab, files)
    _rename_padding(vocab)
    if rules.turns_end:
        config = files.json("config.json")
        ends, bos = config.get("eos_token_id"), config.get("bos_token_id")
        others = [i for i in ends if i != bos] if isinstance(ends, list) else []
        vocab.late_ids |= dict(zip(("eot",), others, strict=False))
    # what a family has always stays, as llama.cpp's converter writes it
    fixed = {kind for kind, token in rules.late_ids if isinstance(token, int)}
    vocab.late_ids = {k: i for k, i in vocab.late_ids.items() if i < n_vocab or k in fixed}
    vocab.notes += filter(None, [unused_template(files, rules.template_file_wins), _lost(vocab)])
    vocab.notes += left_out(vocab.special, vocab.tokens, files, fixed)
    put = edges(vocab)
    tokenizer = files.optional("tokenizer.json")
    if tokenizer is not None and vocab.model in ("gpt2", "llama", "gemma4"):
        check_affixes(tokenizer, files.label("tokenizer.json"))
        theirs = loaded(files, tokenizer)
        vocab.notes += not_done(tokenizer, tokenizer_config(files), theirs, put, vocab)
    return vocab


def _lost(vocab: Vocabulary) -> str | None:
    """A line on special tokens whose text is lost: no text holds U+FFFD, so none has them."""
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED)
    lost = [
        i
        for i, (text, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True))
        if kind in kinds and "\ufffd" in text
    ]
    if not lost:
        return None
    names = ", ".join(f"{vocab.tokens[i]!r} ({i})" for i in lost[:3])
    return f"{len(lost)} added tokens hold U+FFFD and will be found in no text: {names}"


def _of_plamo(files: CheckpointFiles, size: int | None, rules: VocabRules) -> Vocabulary:
    table, model = plamo.read(files, size), plamo.model(files)
    special = plamo.special(files, table.tokens, rules.plamo)
    if model == "plamo3":  # llama.cpp's converter leaves it out of the second
        special.templates = read_special_tokens(files, len(table.tokens), True).templates
    return Vocabulary(model, "default", table.tokens, table.types, table.scores, special=special)


def _of_mistral(found: mistral.MistralVocabulary) -> Vocabulary:
    templates = {} if found.template is None else {"default": found.template}
    special = SpecialTokens(found.ids, {"bos": True, "eos": False}, templates)
    model = "gpt2" if found.pre else "llama"
    return Vocabulary(
        model,
        found.pre,
        found.tokens,
        found.types,
        found.scores,
        found.merges,
        special=special,
        notes=found.notes,
        of_mistral=True,
    )


def _token_types(rules: VocabRules, files: CheckpointFiles) -> int | None:
    """How many types of tokens an encoder has. Raises TokenizerError."""
    if rules.token_types is None:
        return None
    n = files.json("config.json").get("type_vocab_size", rules.token_types)
    if not isinstance(n, int) or not 1 <= n <= _MOST_TYPES:
        raise TokenizerError(f"{files.label('config.json')}: 'type_vocab_size' is {n!r}")
    return n


def _rename_padding(vocab: Vocabulary) -> None:
    """llama.cpp names padding `[PAD<id>]`, and ends at one text for two tokens: another name where
    a token has that one."""
    padding = [
        i
        for i, kind in enumerate(vocab.types)
        if kind == TokenType.UNUSED and vocab.tokens[i] == f"[PAD{i}]"
    ]
    if not padding:
        return
    count = Counter(vocab.tokens)
    for i in padding:
        name = vocab.tokens[i]
        while count[name] > (name == vocab.tokens[i]):
            name = f"[{name}]"
        if name != vocab.tokens[i]:
            vocab.notes.append(f"padding {i} is called {name}: another token is [PAD{i}]")
            count[name] += 1
            vocab.tokens[i] = name


def _number_in(files: CheckpointFiles, name: str, key: str) -> int | None:
    """A number of config.json or its text part; the first of a list of several in another file."""
    values: dict[str, Any] = files.optional(name) or {}
    text = values.get("text_config")
    found = (text if isinstance(text, dict) else {}).get(key, values.get(key))
    if name != "config.json":
        found = found[0] if isinstance(found, list) and len(found) > 1 else None
    return found if isinstance(found, int) else None


def _decoded_id(config: Mapping[str, Any], text: str) -> int | None:
    """The first id that `added_tokens_decoder` has the text for."""
    table = config.get("added_tokens_decoder")
    entries = table.items() if isinstance(table, dict) else ()
    return next((int(i) for i, e in entries if i.isdecimal() and content(e) == text), None)


def _named_to_fill_in(rules: VocabRules, files: CheckpointFiles, n_vocab: int) -> dict[str, int]:
    """The tokens of code to fill in that the files name, of a family that has such anyhow."""
    kinds = [kind for kind, _ in rules.late_ids]
    if "prefix" not in kinds:
        return {}
    return read_special_tokens(files, n_vocab, kinds=[*dict.fromkeys([*kinds, "eot"])]).ids


def _apply(rules: VocabRules, vocab: Vocabulary, files: CheckpointFiles) -> None:
    """Change `vocab` where the family differs from what its files say."""
    config = tokenizer_config(files)
    ids = {token: i for i, token in reversed([*enumerate(vocab.tokens)])}

    def token_id(token: int | str) -> int | None:  # as `VocabRules.ids` name a token
        if isinstance(token, int):
            return token
        if token.startswith("{added_tokens_decoder:"):
            return _decoded_id(config, token[1:-1].partition(":")[2])
        if token.startswith("{added_tokens:"):
            text = token[1:-1].partition(":")[2]
            listed = (files.optional("tokenizer.json") or {}).get("added_tokens") or []
            found = [int(t["id"]) for t in listed if t["content"] == text]
            return found[-1] if found else _decoded_id(config, text)
        if token.startswith("{") and ":" in token:
            return _number_in(files, *token[1:-1].split(":"))
        if token.startswith("{"):
            entry = config.get(token[1:-1])
            token = str(entry.get("content") if isinstance(entry, dict) else entry)
        return ids.get(token)

    for kind, token in rules.ids:
        if (i := token_id(token)) is not None:
            vocab.special.ids.setdefault(kind, i)
    named = _named_to_fill_in(rules, files, len(vocab.tokens))
    vocab.late_ids |= named
    for kind, token in rules.late_ids:  # a kind that has an id keeps its place
        if kind not in named and (i := token_id(token)) is not None:
            at_once = rules.world or kind in vocab.special.ids
            (vocab.special.ids if at_once else vocab.late_ids)[kind] = i
    width = _number_in(files, "config.json", "hidden_size")
    for size, kind, number in rules.of_ranks:
        if size == width and number < len(vocab.tokens) and not files.has("tokenizer.json"):
            (vocab.special.ids if kind in vocab.special.ids else vocab.late_ids)[kind] = number
    for kind, flag in rules.add:
        (vocab.special.add if kind in vocab.special.add else vocab.late_add)[kind] = flag
    prefix = config.get("add_prefix_space", "")
    if prefix is None and rules.config_space_prefix != "first":
        prefix = False  # null, as llama.cpp's converter packs it
    if rules.config_space_prefix and isinstance(prefix, int):
        prefix = bool(prefix)
        if rules.config_space_prefix == "first":
            vocab.space_prefix = prefix
        elif rules.config_space_prefix == "last":
            vocab.late_space_prefix = prefix
        else:
            vocab.middle_space_prefix = prefix
    if rules.json_space_prefix is not None and not files.has("tokenizer.model"):
        vocab.late_space_prefix = rules.json_space_prefix
    if rules.space_prefix is not None:
        vocab.space_prefix, vocab.late_space_prefix = None, rules.space_prefix
    if rules.by_flag:
        plain = (i for i, special in flags_of_added(files).items() if not special)
        for i in filter(range(len(vocab.types)).__contains__, plain):
            vocab.types[i] = int(TokenType.USER_DEFINED)
    kinds = ((rules.shown, TokenType.USER_DEFINED), (rules.control, TokenType.CONTROL))
    for texts, kind_of in kinds:
        for i in filter(None, map(ids.get, texts)):
            vocab.types[i] = int(kind_of)
