"""Chat templates taken apart, and Ollama's Modelfile made of them.

The templates are those of well-known families; the pieces must render what the templates render.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from quantkit.releases.modelfile import go_template, render, stops, turns_of
from quantkit.tokenizer.chat_template import Message, Turns, conversation, renderer, take_apart

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content']"
    " + '<|im_end|>\n' }}{%- else %}{{- '<|im_start|>system\nBe helpful.<|im_end|>\n'"
    " }}{%- endif %}{%- for m in messages %}{%- if m.role == 'user' or m.role == 'assistant' %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}"
    "{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' +"
    " message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
    "{% set messages = messages[1:] %}{% else %}{{ 'A chat between a user and an assistant. ' }}"
    "{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ 'USER: ' + m['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'] + '\n\n' }}{% else %}"
    "{{ '### Response:\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
    "{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
# template -> (its special tokens, whether it has a place for a system message, the stop words)
FAMILIES: dict[str, tuple[str, list[str], bool, list[str]]] = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], True, ["<|im_end|>", "<|im_start|>"]),
    "qwen": (QWEN, ["<|im_start|>", "<|im_end|>"], True, ["<|im_end|>", "<|im_start|>"]),
    "llama2": (LLAMA2, [], True, ["</s>", "<s>", "[INST]", "[/INST]"]),
    "mistral": (MISTRAL, [], False, ["</s>", "[INST]", "[/INST]"]),
    "llama3": (
        LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], True,
        ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    ),
    "gemma": (
        GEMMA, ["<start_of_turn>", "<end_of_turn>"], False, ["<end_of_turn>", "<start_of_turn>"],
    ),
    "phi3": (
        PHI3, ["<|user|>", "<|assistant|>", "<|end|>"], True,
        ["<|end|>", "<|user|>", "<|assistant|>"],
    ),
    "zephyr": (ZEPHYR, [], True, ["</s>", "<|user|>", "<|assistant|>"]),
    "vicuna": (VICUNA, [], True, ["</s>", "USER:", "ASSISTANT:"]),
    "alpaca": (ALPACA, [], True, ["### Instruction:", "### Response:"]),
    "deepseek": (
        DEEPSEEK, ["<｜User｜>", "<｜Assistant｜>"], True,
        ["</s>", "<｜User｜>", "<｜Assistant｜>"],
    ),
}  # fmt: skip
TALKS = [conversation(n, system) for n in (1, 3, 5) for system in (False, True)]


def metadata(template: str, special: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """What a model of a template says of its vocabulary."""
    return {
        "tokenizer.chat_template": template,
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁a", *special],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, *[3] * len(special)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }


def go(text: str, messages: Sequence[Message]) -> str:
    """What Go makes of such a template: the few actions that `go_template` writes, no more."""
    parts = [p for p in re.split(r"(\{\{.*?\}\})", re.sub(r"\s*\{\{-", "{{", text)) if p]
    start, end = parts.index("{{ range .Messages }}"), parts.index("{{ $last = .Role }}")
    assert parts[:start] == ['{{ $last := "" }}']
    assert parts[end + 1] == "{{ end }}"
    branches: list[tuple[str, str, list[str]]] = []
    for part in parts[start + 1 : end - 1]:
        if found := re.fullmatch(r'\{\{ (?:else )?if eq (\S+) ("\w*") \}\}', part):
            branches.append((found[1], json.loads(found[2]), []))
        elif part == "{{ else }}":
            branches.append(("", "", []))
        else:
            branches[-1][2].append(part)

    def said(part: str, message: Mapping[str, str]) -> str:
        inside = part.removeprefix("{{ ").removesuffix(" }}")
        return message["content"] if inside == ".Content" else str(json.loads(inside))

    out, last = "", ""
    for message in messages:
        values = {".Role": message["role"], "$last": last, "": ""}
        body = next(body for name, value, body in branches if values[name] == value)
        out += "".join(said(part, message) for part in body)
        last = message["role"]
    return out + "".join(said(part, {}) for part in parts[end + 2 :])


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    template, special, takes_system, words = FAMILIES[family]
    values = metadata(template, special)
    turns = turns_of(values)
    assert turns is not None
    assert (turns.system is not None) == takes_system
    theirs = renderer(template, {"bos_token": "<s>", "eos_token": "</s>"})
    for messages in TALKS:
        if takes_system or messages[0]["role"] == "user":
            prompt = theirs(messages).removeprefix("<s>")  # llama.cpp begins with it by itself
            assert turns.render(messages) == prompt
            assert go(go_template(turns), messages) == prompt
    assert stops(turns, values) == words
    text = render("a.gguf", 2048, values)
    assert text.startswith('FROM ./a.gguf\nTEMPLATE """')
    assert text.endswith("PARAMETER num_ctx 2048\n")
    assert text.count('"""') == 2


def test_a_model_that_does_not_begin_with_a_token_gets_it_from_the_template() -> None:
    values = metadata(MISTRAL, **{"tokenizer.ggml.add_bos_token": False})
    turns = turns_of(values)
    assert turns is not None
    assert turns.start == "<s>[INST] "


def test_no_place_for_a_system_message() -> None:
    turns = turns_of(metadata(MISTRAL))
    assert turns is not None
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert go(go_template(turns), talk) == "[INST] Be brief.\n\nWhy? [/INST]"


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",  # what was said is changed
    "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}",  # what was said is forgotten
    "{% for m in messages %}{{ loop.index }} {{ m.content }}{% endfor %}",  # turns are numbered
    "{{ raise_exception('no') }}", "{{ messages[9].content }}", "{% if %}", "{{ ''.__class__ }}",
    "{% for i in range(999999999) %}{% endfor %}",
])  # fmt: skip
def test_what_is_not_made_of_turns_is_left_out(template: str) -> None:
    text = render("a.gguf", 2048, metadata(template))
    assert "TEMPLATE" not in text
    assert "PARAMETER stop" not in text
    assert "# " in text


def test_a_model_without_a_template_continues_texts() -> None:
    assert 'TEMPLATE """{{ .Prompt }}"""' in render("a.gguf", 512, {})


def test_words_of_a_template_cannot_leave_their_place() -> None:
    hostile = '"""\n{{ .Env }}\nPARAMETER stop x\n"""'
    turns = Turns(hostile, hostile, hostile, hostile)
    text = go_template(turns)
    assert '"""' not in text
    assert go(text.replace("{{ .Env }}", "[ .Env ]"), conversation(1)) == (
        (hostile + "zq0zq" + hostile).replace("{{ .Env }}", "[ .Env ]")
    )


def test_take_apart_sees_only_what_is_said() -> None:
    def render_(messages: Sequence[Message]) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    turns = take_apart(render_)
    assert turns == Turns("<user>", "<assistant>", "<user>", "<assistant>", "<system>", "<user>")
