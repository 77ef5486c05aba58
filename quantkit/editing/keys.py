"""Metadata as a person edits it: keys set and removed, each checked by name. Pure but for a chat
template, which is compiled in a process of its own."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from quantkit.errors import CorruptFile, RecipeError, UsageError
from quantkit.gguf import schema
from quantkit.gguf.container import TYPE_NAMES, KeyValue, scalar, string
from quantkit.loading.keys import GENERAL, KEYS, Key
from quantkit.loading.vocabulary import UNSET
from quantkit.model.edits import KINDS, fixed
from quantkit.model.model import Model
from quantkit.plain_text import is_utf8
from quantkit.tokenizer.chat_template import compile_fault

TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"
_TOKENS = "tokenizer.ggml.tokens"
_USUAL = {"int": "UINT32", "float": "FLOAT32", "bool": "BOOL", "str": "STRING"}
# without them texts are split otherwise, and llama.cpp may not say so
_SPLIT_WITH = {
    f"tokenizer.ggml.{name}"
    for name in ("model", "pre", "tokens", "scores", "token_type", "merges", "precompiled_charsmap")
}
_NUMBERS: dict[str, Callable[[str], float]] = {
    "int": int, "float": float, "bool": lambda text: {"true": True, "false": False}[text.lower()],
}  # fmt: skip
_COMPARED = 1000  # keys of a file that a misspelt one is held against
_NEW = re.compile(r"[!-~]{1,255}")  # a key that is not there yet


@dataclass(frozen=True)
class Changes:
    """What is asked for: `set` are texts KEY=VALUE or KEY=TYPE:VALUE, `remove` keys, `template` the
    text of a chat template."""

    set: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    template: str | None = None

    def __bool__(self) -> bool:
        return bool(self.set or self.remove or self.template is not None)


def edited(model: Model, changes: Changes) -> Model:
    """The model with other metadata: a key that is set keeps its place, a new one comes last.

    Raises UsageError (a change that no file could take) and RecipeError (one that this file cannot
    take), both before anything is written.
    """
    new = [_parsed(text, model) for text in changes.set]
    if changes.template is not None:
        new.append(string(TEMPLATE, _text(TEMPLATE, changes.template)))
    named = [*(item.key for item in new), *changes.remove]
    if twice := [key for key in named if named.count(key) > 1]:
        raise UsageError(f"{twice[0]} is named twice; one change of a key is made")
    for item in new:
        _check_set(item, model)
    for key in changes.remove:
        _check_removed(key, model, changes.remove)
    there = {item.key for item in model.kv}
    by_key = {item.key: item for item in new}
    kept = (by_key.get(i.key, i) for i in model.kv if i.key not in changes.remove)
    kv = (*kept, *(item for item in new if item.key not in there))
    try:
        schema.check(kv, Path(model.name))
    except CorruptFile as e:
        raise RecipeError(str(e)) from None
    others = [i.key for i in kv if i.key.startswith(f"{TEMPLATE}.")]
    notes = model.notes
    if TEMPLATE in by_key and others:
        words = f"{', '.join(others)}: a template of its own, which stays as it is"
        notes = (*notes, f"{words}; --remove takes it out")
    return replace(model, kv=kv, notes=notes)


def _parsed(text: str, model: Model) -> KeyValue:
    """KEY=VALUE of the type that the key has, or KEY=TYPE:VALUE. Raises UsageError, RecipeError."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--set {text!r} is not KEY=VALUE; for instance 'general.name=My Model'")
    kind, colon, rest = value.partition(":")
    typed = bool(colon) and kind in _USUAL
    if typed:
        value = rest
    old = next((item for item in model.kv if item.key == key), None)
    if old is None and not typed:
        raise RecipeError(
            f"--set {key}: {_not_there(key, model)}; a new key is set with its type, int, float, "
            f"bool or str: {key}=str:{value}"
        )
    if old is None and not _NEW.fullmatch(key):
        raise UsageError(f"--set {key!r} is no name of a key: letters, digits, dots and the like")
    if old is not None and old.type == "ARRAY":
        raise RecipeError(
            f"--set {key}: it is an array of {old.length} {old.element_type}; single values are set"
        )
    stored = old.type if old is not None else _known(key, model.arch, kind)
    if typed and KINDS[stored] != kind:
        where = "in this file" if old is not None else "to llama.cpp"
        raise RecipeError(f"--set {key}: it is {stored} {where}, and no {kind}")
    return _packed(key, stored, value)


def _known(key: str, arch: str, kind: str) -> str:
    """The type that a new key has for llama.cpp, if it reads it; else the usual one of its kind."""
    if key in GENERAL:
        return GENERAL[key]
    known = _key(key, arch)
    return _USUAL[kind] if known is None else known.type


def _key(key: str, arch: str) -> Key | None:
    """What llama.cpp reads a key of the architecture as, if it does."""
    return KEYS.get(key.removeprefix(f"{arch}.")) if key.startswith(f"{arch}.") else None


def _packed(key: str, stored: str, value: str) -> KeyValue:
    """Raises UsageError: the type has no such value."""
    kind = KINDS[stored]
    if kind == "str":
        return string(key, _text(key, value))
    try:
        item = scalar(key, TYPE_NAMES.index(stored), _NUMBERS[kind](value))
        if not math.isfinite(item.value):
            raise ValueError
    except (ValueError, KeyError, struct.error, OverflowError):
        raise UsageError(f"--set {key}: {value!r} is not a value of type {stored}") from None
    return item


def _text(key: str, value: str) -> str:
    """Raises UsageError: no text that a file has and a program reads whole."""
    if "\0" in value or not is_utf8(value):
        raise UsageError(f"{key}: its text is not UTF-8, or has a NUL in it")
    return value


def _check_set(item: KeyValue, model: Model) -> None:
    """Raises RecipeError: a value that says another thing than the tensors, the file and the
    vocabulary, or a template that is none."""
    if why := _of_file(item.key, model) or fixed(model, item):
        raise RecipeError(f"--set {item.key}: {why}")
    if item.key == TEMPLATE or item.key.startswith(f"{TEMPLATE}."):
        if not item.value:
            raise RecipeError(f"{item.key} would be empty; --remove {item.key} takes it out")
        if why := compile_fault(item.value):
            raise RecipeError(f"{item.key} does not compile: {why}")
    tokens = next((i.length for i in model.kv if i.key == _TOKENS and i.type == "ARRAY"), None)
    of_token = item.key.startswith("tokenizer.ggml.") and item.key.endswith("_token_id")
    if of_token and tokens is not None and item.type != "STRING":
        known = item.value == UNSET or 0 <= item.value < tokens
        if not known:
            raise RecipeError(f"--set {item.key}: {item.value} is no id of the {tokens} tokens")


def _check_removed(key: str, model: Model, removed: Sequence[str]) -> None:
    """Raises RecipeError: a key that is not there, or without which the file is another one."""
    known = _key(key, model.arch)
    if why := _of_file(key, model):
        raise RecipeError(f"--remove {key}: {why}")
    if all(item.key != key for item in model.kv):
        raise RecipeError(f"--remove {key}: {_not_there(key, model)}")
    if key == "general.architecture" or (known is not None and known.of_tensors):
        raise RecipeError(f"--remove {key}: it says what the tensors are, and stays")
    if key in _SPLIT_WITH:
        raise RecipeError(f"--remove {key}: texts are split with it, and it stays")
    names: list[str] = next(
        (i.value for i in model.kv if i.key == TEMPLATES and i.type == "ARRAY"), []
    )
    if key.removeprefix(f"{TEMPLATE}.") in names and TEMPLATES not in removed:
        raise RecipeError(f"--remove {key}: {TEMPLATES} lists it; remove both")


def _of_file(key: str, model: Model) -> str:
    """Why a key that says how the file is laid out stays as it is; empty for another."""
    if key == "general.alignment" or key.startswith("split."):
        return "it says how the file is laid out, and is written as that is"
    if key == f"{model.arch}.vocab_size":
        return "it counts the rows of the embedding, and stays"
    return ""


def _not_there(key: str, model: Model) -> str:
    near = get_close_matches(key, [i.key for i in model.kv[:_COMPARED] if len(i.key) < 100], n=1)
    return f"not in this file{f' (did you mean {near[0]}?)' if near else ''}"
