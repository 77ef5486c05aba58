"""Ollama's Modelfile of a release: the weights, the chat template in Go's language, stop words.

What a Modelfile may say: https://github.com/ollama/ollama/blob/main/docs/modelfile.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.releases.purpose import purpose_of
from quantkit.tokenizer.chat_template import Turns, read_turns, special_token

SPECIAL = (3, 4)  # token types of llama.cpp that are matched in text: control, user-defined


def render(
    first: str,
    context: int,
    values: Mapping[str, Any],
    split: bool = False,
    tensors: Collection[str] = (),
    beside: Sequence[str] = (),
) -> str:
    """The text of a Modelfile for the GGUF file `first` (of splits, if `split`). `values` is the
    model's metadata, `tensors` the names of its tensors, `beside` the files
    of encoders that belong to it."""
    purpose = purpose_of(values, tensors)
    if purpose is not None and not purpose.ollama:
        lines = [f"# {purpose.words}", f"# Ollama has no command for that: {purpose.program} does"]
        return "\n".join([*lines, f"FROM ./{first}"]) + "\n"
    lines = [f"FROM ./{name}" for name in (first, *beside)]
    if split:
        lines.insert(
            0, "# Ollama takes no splits: join them with `quantkit merge`, and name that file"
        )
    if purpose is not None:
        return "\n".join([*lines, f"PARAMETER num_ctx {context}"]) + "\n"
    template = values.get("tokenizer.chat_template")
    turns = turns_of(values) if template else None
    if turns:
        lines.append(f'TEMPLATE """{go_template(turns)}"""')
        lines += [
            f"PARAMETER stop {json.dumps(w, ensure_ascii=False)}" for w in stops(turns, values)
        ]
    elif template:
        lines.append(
            "# the chat template is not one of plain turns; Ollama looks for one in the GGUF"
        )
    else:
        lines += ["# a base model: it continues a text", 'TEMPLATE """{{ .Prompt }}"""']
    lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join(lines) + "\n"


def turns_of(values: Mapping[str, Any]) -> Turns | None:
    """The turns of a model's chat template, without the token that llama.cpp adds at the start;
    None if it does not write turns."""
    tokens = {f"{name}_token": special_token(values, name) for name in ("bos", "eos", "unk", "pad")}
    turns = read_turns(values["tokenizer.chat_template"], tokens)
    if turns is None or not values.get("tokenizer.ggml.add_bos_token", True):
        return turns
    bos = tokens["bos_token"]
    system = None if turns.system is None else turns.system.removeprefix(bos)
    return replace(turns, start=turns.start.removeprefix(bos), system=system)


def go_template(turns: Turns) -> str:
    """The turns as a template of Ollama's. Text is written as Go string literals, so that no space
    between actions matters. A system message that the model's template has no place for comes
    before the first question."""
    system = turns.system
    instructed = turns.instructed if system is not None else "\n\n"
    first = turns.start if system is None else system
    return (
        '{{- $last := "" }}\n'
        "{{- range .Messages }}\n"
        f'{{{{- if eq .Role "system" }}}}{_go(first)}{{{{ .Content }}}}\n'
        f'{{{{- else if eq .Role "assistant" }}}}{_go(turns.ask)}{{{{ .Content }}}}\n'
        f'{{{{- else if eq $last "system" }}}}{_go(instructed)}{{{{ .Content }}}}\n'
        f'{{{{- else if eq $last "" }}}}{_go(turns.start)}{{{{ .Content }}}}\n'
        f"{{{{- else }}}}{_go(turns.answered)}{{{{ .Content }}}}\n"
        "{{- end }}\n"
        "{{- $last = .Role }}\n"
        f"{{{{- end }}}}{_go(turns.reply)}"
    )


def _go(words: str) -> str:
    """An action that writes these words. Go reads JSON's escapes."""
    return f"{{{{ {json.dumps(words, ensure_ascii=False)} }}}}" if words else ""


def stops(turns: Turns, values: Mapping[str, Any]) -> list[str]:
    """Text at which an answer ends: the special tokens between an answer and the next; if there are
    none, the text that begins the next question, unless it is a plain word."""
    kinds = values.get("tokenizer.ggml.token_type", [])
    tokens = values.get("tokenizer.ggml.tokens", [])
    special = {t for t, kind in zip(tokens, kinds, strict=False) if kind in SPECIAL and t.strip()}
    ends = {special_token(values, "bos"), special_token(values, "eos")} - {""}
    longest = sorted(map(re.escape, special | ends), key=len, reverse=True)
    cut = re.compile(f"({'|'.join(longest)})" if longest else "(?!)")
    pieces = [piece for words in (turns.answered, turns.ask) for piece in cut.split(words)]
    stop = [piece for piece in pieces if piece in special]
    if set(stop) <= ends:
        lines = [line.strip() for p in pieces if p not in special | ends for line in p.splitlines()]
        stop += [mark for mark in lines if mark and not mark.isalnum()]
    return list(dict.fromkeys(stop))
