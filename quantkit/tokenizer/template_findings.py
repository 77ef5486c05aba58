"""What is wrong with a chat template, or may surprise those who use it: what auditors of GGUF files
look for (ggufdoctor's S family, c4nary's TPL rules), found before there is a file.

A template is a program of the source's, and is written as it came. It is taken apart and rendered
in a process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from quantkit.storage import child
from quantkit.tokenizer.chat_template import (
    LONGEST,
    MEMORY,
    SECONDS,
    environment,
    renderer,
    special_token,
    template_text,
)
from quantkit.tokenizer.llama_jinja import differences

SHOWN = 3  # of anything that there may be many of
_SPECIAL = re.compile(r"<\|[^|>\s]{1,60}\|>")
_ADDRESS = re.compile(r"https?://[^\s\"'{}<>|\\]+")
# what nobody sees: zero-width, turning the direction of text, tags; not the joiners of scripts
_HIDDEN = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
_QUESTION, _ANSWER, _SYSTEM = "zqaskzq", "zqsayzq", "zqsyszq"

Messages = Sequence[Mapping[str, Any]]
ASK: Messages = [{"role": "user", "content": _QUESTION}]
TWICE: Messages = [*ASK, {"role": "assistant", "content": _ANSWER}, *ASK]
INSTRUCTED: Messages = [{"role": "system", "content": _SYSTEM}, *ASK]
IN_PARTS: Messages = [{"role": "user", "content": [{"type": "text", "text": _QUESTION}]}]
_CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED: Messages = [
    *ASK,
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "name": "f", "content": _ANSWER},
]


class Findings(NamedTuple):
    """Lines for people: `wrong` is what breaks prompts or hides something; `notes` are what to
    know."""

    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def of_metadata(values: Mapping[str, Any]) -> Findings:
    """The findings on every chat template of a model, of its metadata by key."""
    if "tokenizer.ggml.tokens" not in values:
        return Findings()
    texts = {
        key.removeprefix("tokenizer.chat_template").lstrip("."): text
        for key, text in values.items()
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")
    }
    if "" not in texts:
        return Findings(notes=("there is none: a base model, or one whose template is elsewhere",))
    wrong, notes = [], []
    for name, text in texts.items():
        found = _of_template(str(text), values)
        said = f"{name}: " if name else ""
        wrong += [said + line for line in found.wrong]
        notes += [said + line for line in found.notes]
    return Findings(tuple(wrong), tuple(notes))


def _of_template(template: str, values: Mapping[str, Any]) -> Findings:
    if len(template) > LONGEST:
        return Findings((f"{len(template):,} characters; nobody looks into so many",))
    tokens = {f"{name}_token": special_token(values, name) for name in ("bos", "eos", "unk", "pad")}
    question = {
        "template": template,
        "tokens": tokens,
        "adds_bos": bool(values.get("tokenizer.ggml.add_bos_token", False)),
    }
    try:
        found = child.ask(__name__, question, SECONDS, MEMORY)
    except child.ChildFailed as e:
        return Findings((f"it cannot be rendered: {e}",))
    notes = list(found["notes"])
    vocabulary = set(map(str, values["tokenizer.ggml.tokens"]))
    if lacking := [text for text in found["written"] if text not in vocabulary]:
        notes.append(
            f"it writes {_some(lacking)}, which the vocabulary does not have: it is cut into pieces"
        )
    return Findings(tuple(found["wrong"]), tuple(notes))


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def _answer(question: Any) -> dict[str, list[str]]:
    template, tokens = question["template"], question["tokens"]
    from jinja2 import Environment

    wrong, notes = _in_text(template)
    try:
        wrong += _in_program(template)
        other = differences(environment(Environment), template_text(template))
        render = renderer(template, tokens)
    except Exception as e:  # jinja2 raises all kinds
        return {
            "wrong": [*wrong, f"it does not compile: {_said(e)}"],
            "notes": notes,
            "written": [],
        }
    more_wrong, more_notes, written = _in_prompts(render, tokens, question["adds_bos"])
    lines = [f"it {line}" for line in other.lines()]
    refused = 1 if other.refused else 0
    wrong, notes = wrong + lines[:refused], notes + lines[refused:]
    return {"wrong": wrong + more_wrong, "notes": notes + more_notes, "written": written}


def _said(e: Exception) -> str:
    return f"{type(e).__name__}: {e}"[:160]


def _in_text(template: str) -> tuple[list[str], list[str]]:
    """What the text of a template tells: characters that hide, addresses."""
    wrong, notes = [], []
    if hidden := list(dict.fromkeys(_HIDDEN.findall(template))):
        wrong.append(f"it hides characters: {_some([f'U+{ord(c):04X}' for c in hidden])}")
    if addresses := list(dict.fromkeys(_ADDRESS.findall(template))):
        notes.append(f"it names {_some(addresses)}")
    if "strftime_now" in template:
        notes.append("it writes today's date: the prompt is another one every day")
    return wrong, notes


def _in_program(template: str) -> list[str]:
    """What a template asks for that no chat needs: the inside of Python's objects, other files."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    tree = environment(ImmutableSandboxedEnvironment).parse(template_text(template))
    names = [node.attr for node in tree.find_all(nodes.Getattr)]
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str):
            names.append(item.arg.value)
    found = [f"it asks for {name}, by which code is run" for name in names if name[:2] == "__"]
    if any(node.name == "attr" for node in tree.find_all(nodes.Filter)):
        found.append("it uses the filter attr, by which code is run")
    outside = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
    if any(True for _ in tree.find_all(outside)):
        found.append("it takes in another file")
    return list(dict.fromkeys(found))


def _in_prompts(
    render: Callable[..., str], tokens: Mapping[str, str], adds_bos: bool
) -> tuple[list[str], list[str], list[str]]:
    """What the prompts of some conversations tell: lines that are wrong, notes, and the special
    tokens that were written."""

    def tried(messages: Messages, **settings: Any) -> tuple[str, str]:
        try:
            return render(messages, **settings), ""
        except Exception as e:  # a template may raise anything
            return "", _said(e)

    (asked, failed), (twice, again), (instructed, refused) = map(tried, (ASK, TWICE, INSTRUCTED))
    written = list(dict.fromkeys(_SPECIAL.findall(asked + twice + instructed)))
    if failed or _QUESTION not in asked:
        what = f"it fails at a question ({failed})" if failed else "it leaves the question out"
        return [what], [], written
    wrong, notes = [], []
    if again:
        wrong.append(f"it fails at a second question ({again})")
    elif _ANSWER not in twice:
        wrong.append("it leaves earlier answers out")
    elif tokens["eos_token"] and tokens["eos_token"] not in twice:
        notes.append(f"it never writes the end token, {tokens['eos_token']}, after an answer")
    if refused or _SYSTEM not in instructed:
        notes.append(f"it takes no system message{f' ({refused})' if refused else ''}")
    if tried(ASK, add_generation_prompt=False) == (asked, ""):
        notes.append("add_generation_prompt changes nothing: a prompt does not begin the answer")
    if adds_bos and tokens["bos_token"] and asked.startswith(tokens["bos_token"]):
        notes.append(
            f"it writes {tokens['bos_token']}, and add_bos_token adds it too: llama.cpp takes one "
            "away, other programs may not"
        )
    unfit = {"content in parts": IN_PARTS, "a tool call without content": CALLED}
    if fails := [what for what, messages in unfit.items() if tried(messages)[1]]:
        notes.append(f"it fails at {' and at '.join(fails)}")
    return wrong, notes, written


if __name__ == "__main__":
    child.answer(_answer)
