"""Special token ids, whether they are added, merges and the chat template, from the small files of
a checkpoint, as llama.cpp's converter finds them (gguf-py `vocab.py`, SpecialVocab).

quantkit keeps its own reading because the gguf package on PyPI trails that of llama.cpp: it lets
`tokenizer_config.json` overrule the post-processor and does not see a byte-level one.
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import TokenizerError
from quantkit.storage.json_files import read_json

TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass
class SpecialTokens:
    """What a tokenizer adds and where its special tokens are. Insertion order is the file's.

    `templates`: chat templates by name; "default" is the one that is used unasked.
    `normalizer`: "lowercase" and "strip_accents", where the tokenizer does that.
    """

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    normalizer: dict[str, bool] = field(default_factory=dict)


def read_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty if there is none. Raises CorruptFile."""
    return _optional(directory / "tokenizer_config.json") or {}


def read_special_tokens(
    directory: Path, n_vocab: int | None = None, template_file_wins: bool = False
) -> SpecialTokens:
    """Read tokenizer.json, tokenizer_config.json, config.json and the chat template files.

    Ids of `n_vocab` and above are left out. `template_file_wins`: chat_template.jinja is preferred
    to tokenizer_config.json. Raises CorruptFile, TokenizerError.
    """
    out = SpecialTokens()
    tokenizer = _optional(directory / "tokenizer.json")
    config = _optional(directory / "tokenizer_config.json")
    model = _optional(directory / "config.json") or {}
    # there is none, whatever the other files say
    types = [kind for kind in TYPES if kind != "pad" or _number(model, "pad_token_id") != -1]
    if tokenizer is not None:
        names = _Names(dict(config or {}), config is not None)
        _read_post_processor(tokenizer.get("post_processor"), names, out.add, types)
        config = names.config if config is not None else None
        _read_normalizer(tokenizer.get("normalizer"), out.normalizer)
    out.templates = _templates(directory, config or {}, template_file_wins)
    if config is not None:
        added = (tokenizer or {}).get("added_tokens") or []
        by_content = {t.get("content"): t.get("id") for t in reversed(added) if isinstance(t, dict)}
        for kind in types:
            if isinstance(flag := config.get(f"add_{kind}_token"), bool):
                out.add.setdefault(kind, flag)
            entry = config.get(f"{kind}_token")
            content = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(content, str):
                _set_id(out.ids, kind, by_content.get(content), n_vocab)
    for kind in types:
        _set_id(out.ids, kind, _number(model, f"{kind}_token_id"), n_vocab)
    return out


def _number(model: dict[str, Any], name: str) -> Any:
    """A value of config.json, or of its text part."""
    value, text = model.get(name), model.get("text_config")
    return text.get(name) if value is None and isinstance(text, dict) else value


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _set_id(ids: dict[str, int], kind: str, token_id: Any, n_vocab: int | None) -> None:
    if not isinstance(token_id, int):
        return
    if token_id < 0:
        raise TokenizerError(f"the id of the {kind} token is {token_id}; ids start at 0")
    if n_vocab is None or token_id < n_vocab:
        ids.setdefault(kind, token_id)


class _Names:
    """The names of bos, eos, cls and sep as the post-processor is read; what it teaches is put into
    `config`, from which the ids are looked up afterwards."""

    def __init__(self, config: dict[str, Any], present: bool) -> None:
        self.config, self.present = config, present
        self.bos, self.eos = config.get("bos_token"), config.get("eos_token")
        self.cls, self.sep = config.get("cls_token"), config.get("sep_token")
        if not self.bos and self.cls:
            self.learn("bos", self.cls)
        if not self.eos and self.sep:
            self.learn("eos", self.sep)

    def learn(self, kind: str, token: Any) -> None:
        setattr(self, kind, token)
        self.config[f"{kind}_token"] = token


def _read_post_processor(
    post: dict[str, Any] | None, names: _Names, add: dict[str, bool], types: list[str]
) -> None:
    for p in (post or {}).get("processors", [post] if post else []):
        kind = p.get("type")
        if kind == "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            add.update(bos=True, eos=True, sep=True)
            if not names.cls:
                names.learn("cls", p.get("cls", [names.bos])[0])
            if not names.sep:
                names.learn("sep", p.get("sep", [names.eos])[0])
        elif kind == "TemplateProcessing":
            _read_template(p, names, add, types)


def _special(item: dict[str, Any]) -> Any:
    return (item.get("SpecialToken") or {}).get("id")


def _read_template(
    p: dict[str, Any], names: _Names, add: dict[str, bool], types: list[str]
) -> None:
    single, pair = p.get("single") or [], p.get("pair") or []
    first = _special(single[0]) if len(single) > 1 else None
    last = _special(single[-1]) if len(single) > 1 else None
    if first:
        if not names.present:
            names.bos = first
        elif first not in (names.bos, names.cls):
            if not names.bos:
                names.learn("bos", first)
            if not names.cls:
                names.learn("cls", first)
        add["bos"] = first in (names.bos, names.cls)
    if last:
        if not names.present:
            names.eos = last
        elif last != names.eos:
            # the template's own end token is eos; what was called eos ends a turn or a message
            spare = next((k for k in ("eot", "eom") if k not in types), None)
            if spare is not None:
                types.append(spare)
                names.config[f"{spare}_token"] = names.eos
            names.learn("eos", last)
        add["eos"] = last == names.eos
    if not pair:
        return
    start = 1 if first and _special(pair[0]) == first else 0
    stop = -1 if last and _special(pair[-1]) == last else None
    middle = pair[start:stop]
    ends = [(middle[i].get("Sequence") or {}).get("id") for i in (0, -1)] if middle else []
    between = [_special(item) for item in middle[1:-1]] if ends == ["A", "B"] else []
    if between:
        separators = [token for token in (names.sep, names.eos) if token]
        add["sep"] = (between[0] in separators and not last) or (
            len(between) == 2 and between[1] in separators
        )
        if add["sep"] and not names.sep and names.present:
            names.config["sep_token"] = names.eos


def _read_normalizer(step: dict[str, Any] | None, out: dict[str, bool]) -> None:
    kind = (step or {}).get("type")
    if step is None or kind is None:
        return
    if kind == "Lowercase":
        out["lowercase"] = True
    elif kind == "StripAccents":
        out["strip_accents"] = True
    elif kind == "BertNormalizer":
        for name in ("lowercase", "strip_accents"):
            if isinstance(step.get(name), bool):
                out[name] = step[name]
    elif kind == "Sequence":
        for inner in step.get("normalizers", []):
            _read_normalizer(inner, out)


def _templates(directory: Path, config: dict[str, Any], file_wins: bool) -> dict[str, str]:
    """The templates of tokenizer_config.json, else chat_template.jinja (with the named ones beside
    it), else chat_template.json."""
    places = [_template_of_config, _templates_of_files]
    for read in reversed(places) if file_wins else places:
        if found := read(directory, config):
            return found
    return {}


def _template_of_config(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    return _by_name(config.get("chat_template"))


def _templates_of_files(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    jinja, as_json = directory / "chat_template.jinja", directory / "chat_template.json"
    if jinja.is_file():
        more = sorted((directory / "additional_chat_templates").glob("*.jinja"))
        named = [{"name": t.stem, "template": t.read_text(encoding="utf-8")} for t in more]
        text = jinja.read_text(encoding="utf-8")
        return _by_name([{"name": "default", "template": text}, *named])
    return _by_name(read_json(as_json).get("chat_template")) if as_json.is_file() else {}


_IN_NAMES = string.ascii_letters + string.digits


def _by_name(value: Any) -> dict[str, str]:
    """One template, or a list of named ones; names are kept to letters, digits and underscores."""
    if isinstance(value, str):
        return {"default": value}
    out: dict[str, str] = {}
    for entry in value if isinstance(value, list) else []:
        name, template = str(entry.get("name", "")), entry.get("template")
        if name and isinstance(template, str):
            out["".join(c if c in _IN_NAMES else "_" for c in name)] = template
    return out


def read_merges(tokenizer: dict[str, Any]) -> list[str]:
    """The merges of a BPE tokenizer.json as GGUF keeps them: two pieces and a space.

    A space inside a piece is written as U+0120, as in llama.cpp.
    """
    merges = tokenizer["model"].get("merges") or []
    if all(isinstance(m, str) for m in merges):
        return list(merges)
    if not all(isinstance(m, list) and len(m) == 2 for m in merges):
        raise TokenizerError(f"tokenizer.json: merge {json.dumps(merges[0])} is not a pair")
    return [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]
