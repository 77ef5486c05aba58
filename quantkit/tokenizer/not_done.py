"""What a tokenizer.json does to a text that llama.cpp does not: lines for people, since no key of a
file could ask for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quantkit.errors import TokenizerError
from quantkit.tokenizer.special_tokens import content
from quantkit.tokenizer.token_types import TokenType

if TYPE_CHECKING:
    from tokenizers import AddedToken

    from quantkit.tokenizer.vocabulary import Vocabulary

    Loaded = Mapping[int, AddedToken]


# a normalizer's steps that change nothing which llama.cpp does not change too, or that the docs
# tell of (NFC)
_DONE = frozenset({"NFC", "Prepend", "ByteLevel", "Sequence"})
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)
_MASKS = ("<mask>", "[MASK]")
_SPACES = str.maketrans("\u2581\u0120", "  ")  # SentencePiece's and the byte-level one


def check_affixes(tokenizer: Mapping[str, Any], label: str) -> None:
    """Merges that join pieces with a mark, `</w>` or `##`, which llama.cpp takes for text. Raises
    TokenizerError."""
    model = tokenizer.get("model")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and "merges" in model and (mark := model.get(name)):
            raise TokenizerError(
                f"{label}: {name} is {mark!r}; llama.cpp joins pieces without such marks"
            )


def not_done(
    tokenizer: Mapping[str, Any],
    config: Mapping[str, Any],
    theirs: Loaded,
    put: Mapping[str, str],
    vocab: Vocabulary,
) -> list[str]:
    """Lines on a tokenizer.json's normalizer, post-processor and tokens, and on the flags of
    tokenizer_config.json (`config`), where the `vocab` splits texts otherwise.

    `theirs` are the added tokens as transformers loads them, by id; `put` the tokens that llama.cpp
    will begin and end texts with."""
    lines = [*_others(tokenizer, theirs, vocab), *_renamed(config, vocab)]
    lines += _taken_with(theirs, vocab)
    for kind, flag in vocab.special.add.items():
        said = config.get(f"add_{kind}_token")
        if isinstance(said, bool) and said != flag:
            lines.append(
                f"add_{kind}_token is {json.dumps(said)} in tokenizer_config.json, and "
                f"{json.dumps(flag)} by tokenizer.json, which counts for llama.cpp's converter too"
            )
    steps = list(dict.fromkeys(_changes(tokenizer.get("normalizer"))))
    if steps:
        lines.append(
            f"tokenizer.json changes a text before it is split ({', '.join(steps)}); llama.cpp "
            "does not"
        )
    if any(step.get("add_prefix_space") for step in _byte_steps(tokenizer.get("pre_tokenizer"))):
        lines.append("tokenizer.json puts a space before a text; llama.cpp does not")
    first, last = _around(tokenizer.get("post_processor"))
    for where, kind, names in (("before", "bos", first), ("behind", "eos", last)):
        ours = [put[kind]] if kind in put else []
        if names != ours:
            lines.append(
                f"tokenizer.json puts {' '.join(names) or 'nothing'} {where} a text; llama.cpp "
                f"will put {' '.join(ours) or 'nothing'} there"
            )
    return lines


def _others(tokenizer: Mapping[str, Any], theirs: Loaded, vocab: Vocabulary) -> Iterator[str]:
    """Lines on ids that the tokenizer has other texts for, and on tokens that it does not have."""
    model = tokenizer.get("model")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    texts = {i: p for p, i in pieces.items()} if isinstance(pieces, dict) else {}
    texts |= {i: token.content for i, token in theirs.items()}
    texts = {i: text for i, text in texts.items() if isinstance(i, int) and i >= 0}
    tokens = [text.translate(_SPACES) for text in vocab.tokens]
    known = {text.translate(_SPACES) for text in texts.values()}
    other = [
        f"{text!r} for {vocab.tokens[i]!r} ({i})"
        for i, text in sorted(texts.items())
        if i < len(tokens) and text.translate(_SPACES) != tokens[i]
    ]
    if other:
        yield f"tokenizer.json has {len(other)} other tokens: {', '.join(other[:3])}"
    more = [
        f"{text!r} ({i})"
        for i, (text, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True))
        if kind in _ADDED and tokens[i] not in known
    ]
    if more:
        yield f"tokenizer.json lacks {len(more)} tokens that other files add: " + ", ".join(
            more[:3]
        )


def _renamed(config: Mapping[str, Any], vocab: Vocabulary) -> Iterator[str]:
    """A line on tokens that tokenizer_config.json has other texts for."""
    table = config.get("added_tokens_decoder")
    entries = table.items() if isinstance(table, dict) else ()
    texts = {int(i): content(e) for i, e in entries if str(i).isdecimal()}
    other = [
        f"{text!r} for {vocab.tokens[i]!r} ({i})"
        for i, text in sorted(texts.items())
        if isinstance(text, str)
        and i < len(vocab.tokens)
        and vocab.types[i] in _ADDED
        and text.translate(_SPACES) != vocab.tokens[i].translate(_SPACES)
    ]
    if other:
        yield (
            f"tokenizer_config.json has {len(other)} other tokens ({', '.join(other[:3])}): those "
            "of tokenizer.json are taken; versions of transformers differ"
        )


def _taken_with(theirs: Loaded, vocab: Vocabulary) -> Iterator[str]:
    """A line on added tokens whose place in a text matters."""
    found = [
        token.content
        for i, token in sorted(theirs.items())
        if i < len(vocab.tokens)
        and (token.lstrip or token.rstrip or token.single_word)
        and token.content not in _MASKS  # which no text to be embedded has
    ]
    if found:
        yield (
            f"{len(found)} tokens take the spaces beside them along, or stand for whole words only "
            f"({', '.join(found[:3])}); llama.cpp minds neither, but in models that it knows by "
            "name (Phi-3)"
        )


def _changes(step: Any) -> Iterator[str]:
    """The kinds of a normalizer's steps that llama.cpp does not take."""
    if not isinstance(step, dict):
        return
    for inner in step.get("normalizers") or ():
        yield from _changes(inner)
    spaces = step.get("type") == "Replace" and step.get("pattern") == {"String": " "}
    if step.get("type") not in _DONE and not (spaces and step.get("content") == "\u2581"):
        yield str(step.get("type"))


def _byte_steps(step: Any) -> Iterator[dict[str, Any]]:
    """The byte-level steps of a pre-tokenizer."""
    if isinstance(step, dict):
        for inner in step.get("pretokenizers") or ():
            yield from _byte_steps(inner)
        if step.get("type") == "ByteLevel":
            yield step


def _around(post: Any) -> tuple[list[str], list[str]]:
    """The special tokens that a post-processor puts before and behind a text."""
    first: list[str] = []
    last: list[str] = []
    if not isinstance(post, dict):
        return first, last
    for step in post.get("processors") or [post]:
        if step.get("type") in ("RobertaProcessing", "BertProcessing"):
            first, last = [step["cls"][0], *first], [*last, step["sep"][0]]
        elif step.get("type") == "TemplateProcessing":
            single = step.get("single") or []
            names: list[Any] = [(item.get("SpecialToken") or {}).get("id") for item in single]
            if None in names:
                at = names.index(None)
                first, last = names[:at] + first, last + [n for n in names[at:] if n]
    return first, last
