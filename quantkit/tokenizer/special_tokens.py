"""Special token ids, whether a tokenizer adds them, merges and chat templates, from the small files
of a checkpoint, as llama.cpp's converter reads them (gguf-py `vocab.py`, SpecialVocab).

Not by gguf's SpecialVocab: the release on PyPI is behind llama.cpp's. It lets
`tokenizer_config.json` overrule the post-processor and does not know a byte-level one.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as resources
from typing import Any

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles

TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass
class SpecialTokens:
    """Special tokens by kind ("bos", "eot" ...), in the order in which they were read.

    `ids`: token ids. `add`: whether the tokenizer adds them to a text. `templates`: chat templates
    by name, "default" being the one used when none is asked for. `normalizer`: "lowercase" and
    "strip_accents", where the tokenizer does that. `past`: ids that are left out because the
    vocabulary ends before them.
    """

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    normalizer: dict[str, bool] = field(default_factory=dict)
    past: dict[str, int] = field(default_factory=dict)


def tokenizer_config(files: CheckpointFiles) -> dict[str, Any]:
    """tokenizer_config.json; empty if there is none. Raises CorruptFile."""
    return files.optional("tokenizer_config.json") or {}


def content(entry: Any) -> Any:
    """A token's text, where it may be an object with flags."""
    return entry.get("content") if isinstance(entry, dict) else entry


def flags_of_added(files: CheckpointFiles) -> dict[int, bool]:
    """Id -> whether the files call an added token special. Raises CorruptFile."""
    listed = (files.optional("tokenizer.json") or {}).get("added_tokens")
    config = tokenizer_config(files).get("added_tokens_decoder")
    entries = [(t.get("id"), t) for t in listed or () if isinstance(t, dict)]
    if isinstance(config, dict):
        entries += [(int(i), t) for i, t in config.items() if str(i).isdecimal()]
    return {
        i: bool(t.get("special")) for i, t in entries if isinstance(i, int) and isinstance(t, dict)
    }


def read_special_tokens(
    files: CheckpointFiles,
    n_vocab: int,
    template_file_wins: bool = False,
    kinds: Sequence[str] = TYPES,
) -> SpecialTokens:
    """Read tokenizer.json, tokenizer_config.json, config.json and the chat template files.

    Ids of `n_vocab` and above are left out, and the next file that names one counts.
    `template_file_wins`: chat_template.jinja is preferred to tokenizer_config.json. `kinds`: the
    tokens that are looked for. Raises CorruptFile, TokenizerError.
    """
    special = SpecialTokens()
    tokenizer = files.optional("tokenizer.json")
    config = files.optional("tokenizer_config.json") or None  # an empty one is none
    model = files.optional("config.json") or {}
    # there is none, whatever the other files say
    types = [kind for kind in kinds if kind != "pad" or _value(model, "pad_token_id") != -1]

    def set_id(kind: str, token_id: Any, file: str) -> None:
        if not isinstance(token_id, int):
            return
        if token_id < 0:
            raise TokenizerError(
                f"{files.label(file)}: the id of the {kind} token is {token_id}; ids start at 0"
            )
        if token_id < n_vocab:
            special.ids.setdefault(kind, token_id)
        elif kind not in special.ids:
            special.past.setdefault(kind, token_id)

    if tokenizer is not None:
        names = _Names(dict(config or {}), config is not None)
        _read_post_processor(tokenizer.get("post_processor"), names, special.add, types)
        config = names.config if config is not None else None
        _read_normalizer(tokenizer.get("normalizer"), special.normalizer)
    special.templates = _templates(files, config or {}, template_file_wins)
    if config is not None:
        added = (tokenizer or {}).get("added_tokens") or []
        by_content = {t.get("content"): t.get("id") for t in reversed(added) if isinstance(t, dict)}
        for kind in types:
            if isinstance(flag := config.get(f"add_{kind}_token"), bool):
                special.add.setdefault(kind, flag)
            text = content(config.get(f"{kind}_token"))
            if isinstance(text, str):
                set_id(kind, by_content.get(text), "tokenizer.json")
    for kind in types:
        set_id(kind, _value(model, f"{kind}_token_id"), "config.json")
    return special


def _value(model: dict[str, Any], name: str) -> Any:
    """A value of config.json, or of its text part."""
    value, text = model.get(name), model.get("text_config")
    return text.get(name) if value is None and isinstance(text, dict) else value


class _Names:
    """The texts of bos, eos, cls and sep while the post-processor is read. What it tells of them is
    put into `config`, where their ids are looked up afterwards."""

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


# The post-processor of tokenizer.json tells which special tokens are put around a text.
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
            # the template's end token is eos; the token that was called eos ends a turn or message
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


def _read_normalizer(step: dict[str, Any] | None, flags: dict[str, bool]) -> None:
    kind = (step or {}).get("type")
    if step is None or kind is None:
        return
    if kind == "Lowercase":
        flags["lowercase"] = True
    elif kind == "StripAccents":
        flags["strip_accents"] = True
    elif kind == "BertNormalizer":
        for name in ("lowercase", "strip_accents"):
            if isinstance(step.get(name), bool):
                flags[name] = step[name]
            elif name in step:
                flags.pop(name, None)
    elif kind == "Sequence":
        for inner in step.get("normalizers", []):
            _read_normalizer(inner, flags)


def _templates(files: CheckpointFiles, config: dict[str, Any], file_wins: bool) -> dict[str, str]:
    """The templates of tokenizer_config.json, else of the files of their own. `file_wins`:
    chat_template.jinja is the one without a name whatever the former says."""
    found = _by_name(config.get("chat_template")) or _templates_of_files(files)
    if file_wins and files.has("chat_template.jinja"):
        return {**found, "default": files.text("chat_template.jinja")}
    return found


def own_template(name: str, model: str = "") -> str:
    """A chat template of llama.cpp's `models/templates` (MIT), by the file's name here. One of
    `name` with the date that a `model` is called by is preferred."""
    folder = resources("quantkit.tokenizer") / "templates"
    if "0731" in model and (dated := folder / name.replace(".", "-0731.")).is_file():
        return dated.read_text(encoding="utf-8")
    return (folder / name).read_text(encoding="utf-8")


def unused_template(files: CheckpointFiles, file_wins: bool) -> str | None:
    """A line where two places hold chat templates that differ, and one of them is not used."""
    config = _by_name(tokenizer_config(files).get("chat_template"))
    of_files = _templates_of_files(files)
    if not config or not of_files or config == of_files:
        return None
    name = "chat_template.jinja" if files.has("chat_template.jinja") else "chat_template.json"
    used, unused = "tokenizer_config.json", name
    file_wins = file_wins and files.has("chat_template.jinja")
    if file_wins:
        used, unused = unused, used
    empty = " (an empty text)" if not any((of_files if file_wins else config).values()) else ""
    return f"the chat template of {used}{empty} is used; that of {unused} differs, and is not"


def _templates_of_files(files: CheckpointFiles) -> dict[str, str]:
    """chat_template.jinja with the named ones beside it, else chat_template.json."""
    if files.has("chat_template.jinja"):
        entries = [{"name": "default", "template": files.text("chat_template.jinja")}]
        for path in sorted(files.path("additional_chat_templates").glob("*.jinja")):
            text = files.text(f"additional_chat_templates/{path.name}")
            entries.append({"name": path.stem, "template": text})
        return _by_name(entries)
    return _by_name((files.optional("chat_template.json") or {}).get("chat_template"))


_IN_NAMES = string.ascii_letters + string.digits


def _by_name(value: Any) -> dict[str, str]:
    """One template, or a list of named ones; names are kept to letters, digits and underscores."""
    if isinstance(value, str):
        return {"default": value}
    templates: dict[str, str] = {}
    for entry in value if isinstance(value, list) else []:
        name, template = str(entry.get("name", "")), entry.get("template")
        if name and isinstance(template, str):
            templates["".join(c if c in _IN_NAMES else "_" for c in name)] = template
    return templates


def kind_of(model: Mapping[str, Any]) -> Any:
    """The type of a tokenizer.json's `model`; of older ones, which do not say it, what their other
    entries tell, as to the tokenizers library."""
    if "type" in model:
        return model["type"]
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece"


def read_merges(tokenizer: dict[str, Any], label: str = "tokenizer.json") -> list[str]:
    """The merges of a BPE tokenizer.json as GGUF keeps them: two pieces with a space between.

    A space inside a piece is written as U+0120, as in llama.cpp. `label` names the file in errors.
    Raises TokenizerError.
    """
    merges = tokenizer["model"].get("merges") or []
    if all(isinstance(m, str) for m in merges):
        return list(merges)
    if not all(isinstance(m, list) and len(m) == 2 for m in merges):
        raise TokenizerError(f"{label}: merge {json.dumps(merges[0])} is not a pair")
    return [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]
