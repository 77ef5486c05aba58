"""A chat template taken apart: the fixed text before and after each message.

Templates are programs, but nearly all of them write turns: fixed text around each message. That
text is found by rendering the template with placeholder messages and taking what stands between
them. It is used only if it renders longer conversations exactly as the template does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from quantkit.plain_text import is_utf8
from quantkit.storage import child
from quantkit.tokenizer.llama_jinja import differences

SECONDS, MEMORY = 5, 1 << 29  # of the process in which a template is rendered
LONGEST = 1 << 20  # characters of a template; and, a tenth of them, of what it writes around words
Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]
# marks for training, which write nothing; the spaces around them are treated as a block's
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


@dataclass(frozen=True)
class Turns:
    """The fixed text of a conversation that ends with a question.

    `start` stands before its first question, `ask` after a question that has an answer, `answered`
    between an answer and the next question, `reply` after the last question. With a system message,
    `system` stands before it and `instructed` between it and the first question; `system` is None
    where the template has no place for one.
    """

    start: str
    ask: str
    answered: str
    reply: str
    system: str | None = None
    instructed: str = ""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation."""
        text, last = "", ""
        for message in messages:
            role = message["role"]
            words = {
                ("", "system"): self.system or "",
                ("", "user"): self.start,
                ("system", "user"): self.instructed,
                ("assistant", "user"): self.answered,
                ("user", "assistant"): self.ask,
            }
            text, last = text + words[last, role] + message["content"], role
        return text + self.reply


def conversation(messages: int, system: bool = False) -> list[Message]:
    """Placeholders: questions and answers in turn, with or without a system message first."""
    placeholders: list[Message] = [{"role": "system", "content": "zqszq"}] if system else []
    for i in range(messages):
        placeholders.append({"role": ("user", "assistant")[i % 2], "content": f"zq{i}zq"})
    return placeholders


def take_apart(render: Render) -> Turns | None:
    """The turns that a template writes; None if it writes something else, or fails."""
    words = _between(render, conversation(3))
    if words is None:
        return None
    start, ask, answered, reply = words
    turns = Turns(start, ask, answered, reply)
    if not all(_agrees(turns, render, conversation(n)) for n in (1, 3, 5)):
        return None
    if words := _between(render, conversation(1, system=True)):
        with_system = replace(turns, system=words[0], instructed=words[1])
        if all(_agrees(with_system, render, conversation(n, system=True)) for n in (1, 3, 5)):
            return with_system
    return turns


def read_turns(template: str, tokens: Mapping[str, str]) -> Turns | None:
    """The turns that a template of a stranger's writes; None if it writes something else, fails, or
    takes too long or too much memory. It is rendered in a process of its own."""
    return None if len(template) > LONGEST else _read_turns(template, tuple(tokens.items()))


@lru_cache(maxsize=4)  # card, Modelfile and matrix ask for the same
def _read_turns(template: str, tokens: tuple[tuple[str, str], ...]) -> Turns | None:
    question = {"template": template, "tokens": dict(tokens)}
    try:
        found = child.ask(__name__, question, SECONDS, MEMORY)
    except child.ChildFailed:
        return None
    return None if found is None else Turns(**found)


def compile_fault(template: str) -> str:
    """Why a template of a stranger's does not compile, in a few words; empty if it does. It is
    compiled in a process of its own, and not run."""
    if len(template) > LONGEST:
        return f"{len(template):,} characters; {LONGEST:,} are the most"
    try:
        return str(child.ask(__name__, {"compile": template}, SECONDS, MEMORY))
    except child.ChildFailed as e:
        return str(e)


def not_for_llama(templates: Mapping[str, str]) -> list[str]:
    """Lines on templates, by name, that do not even parse, so that nobody can render them, and on
    what others have that llama.cpp's Jinja has not. They are parsed here, and not compiled."""
    from jinja2 import Environment, TemplateError

    lines = []
    for name, template in templates.items():
        which = "the chat template" + ("" if name == "default" else f" '{name}'")
        parser = environment(Environment)
        try:
            found = differences(parser, template_text(template[:LONGEST]))
        except (TemplateError, RecursionError) as e:
            at = f", line {line}" if (line := getattr(e, "lineno", None)) else ""
            lines.append(
                f"{which} is no Jinja ({f'{e}'[:160]}{at}): transformers cannot render it, nor "
                "can llama.cpp but for a few slips; mend it, or name another when the file is run "
                "(--chat-template)"
            )
        else:
            lines += [f"{which} {line}" for line in found.lines()]
    return lines


def _answer(question: Any) -> dict[str, Any] | str | None:
    if "compile" in question:
        try:
            renderer(question["compile"], {})
        except Exception as e:  # jinja2 raises all kinds
            line = getattr(e, "lineno", None)
            return f"{e}"[:160] + (f" (line {line})" if line else "")
        return ""
    try:
        turns = take_apart(renderer(question["template"], question["tokens"]))
    except Exception:  # the template does not compile
        return None
    words = asdict(turns) if turns else {}
    text = "".join(word for word in words.values() if word)
    if not turns or 10 * len(text) > LONGEST or not is_utf8(text):
        return None
    return words


def _between(render: Render, messages: Sequence[Message]) -> list[str] | None:
    """What a template writes before, between and after the contents of messages."""
    try:
        rest, words = render(messages), []
        for message in messages:
            before, content, rest = rest.partition(message["content"])
            if not content:
                return None
            words.append(before)
        return [*words, rest]
    except Exception:  # the template may raise anything
        return None


def _agrees(turns: Turns, render: Render, messages: Sequence[Message]) -> bool:
    try:
        return render(messages) == turns.render(messages)
    except Exception:
        return False


def renderer(template: str, tokens: Mapping[str, str]) -> Callable[..., str]:
    """A function that renders a chat template as transformers does when it asks for an answer, or
    with other settings by keyword. `tokens` are `bos_token`, `eos_token` and the like. Both
    functions may raise anything."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    compiled = environment(ImmutableSandboxedEnvironment).from_string(template_text(template))

    def render(messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
        settings: dict[str, Any] = {"add_generation_prompt": True, "tools": None, "documents": None}
        given = [dict(m) for m in messages]
        text: str = compiled.render(messages=given, **tokens, **{**settings, **more})
        return text

    return render


def environment(kind: Callable[..., Any]) -> Any:
    """The environment, of a class of jinja2's, that transformers renders chat templates in."""
    import json
    from datetime import datetime

    def refuse(message: str) -> None:
        raise ValueError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    made = kind(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def template_text(template: str) -> str:
    """A template without marks that are for training: a block that is always there instead."""
    return _GENERATION.sub(
        lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", template
    )


def special_token(values: Mapping[str, Any], name: str) -> str:
    """The text of a special token (bos, eos, unk, pad) by a model's metadata, "" if there is
    none."""
    written = {"unk": "unknown", "pad": "padding"}.get(name, name)
    tokens = values.get("tokenizer.ggml.tokens", [])
    number = values.get(f"tokenizer.ggml.{written}_token_id", -1)
    return str(tokens[number]) if 0 <= number < len(tokens) else ""


if __name__ == "__main__":
    child.answer(_answer)
