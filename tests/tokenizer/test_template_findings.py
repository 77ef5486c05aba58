"""What is said of chat templates: what auditors say of the same ones, and what hides in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quantkit.architectures.rules import ConversionOptions
from quantkit.cli import app
from quantkit.model.open import Reading, open_checkpoint, open_source
from quantkit.tokenizer import template_findings
from quantkit.tokenizer.chat_template import not_for_llama
from quantkit.tokenizer.template_findings import Findings, of_metadata
from tests.checkpoints import from_recipe
from tests.vocabularies import edit_json, write_files

# what ggufdoctor 0.3.0 (jinja2 engine) says of files converted from these goldens; c4nary 0.3.1 has
# no finding on their templates. S003: a conversation that cannot be rendered
S003, S005, S006, S007 = (
    "it fails at",
    "never writes the end",
    "add_bos_token adds",
    "changes nothing",
)
AUDITED = {
    "deepseek-v32": (S003, S005, S007), "ernie-end": (S003, S006, S007),
    "ernie-fused": (S003, S005, S006, S007), "gemma4-e2b": (S003,),
    "gemma4-moe-nvfp4": (S003, S005, S006, S007), "glm5": (S003, S005, S007),
    "gpt-oss-bf16": (S003, S005, S007), "grok2-split": (S003,), "internlm2": (S003,),
    "llama-nvfp4": (S003, S006, S007), "llama4": (S003, S006, S007), "minimax-m1": (S005, S007),
    "mistral4": (S003, S006, S007),
    "olmoe": (S003, S005, S007), "phimoe": (S003, S005, S007),
}  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = ["<s>", "<|im_end|>", "<|im_start|>", "a"]


def found(template: str | None, **more: Any) -> Findings:
    values: dict[str, Any] = {
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }
    if template is not None:
        values["tokenizer.chat_template"] = template
    return of_metadata(values)


@pytest.mark.parametrize("case", AUDITED)
def test_what_auditors_say(case: str, tmp_path: Path) -> None:
    model = open_source(from_recipe(case, tmp_path))
    findings = of_metadata({item.key: item.value for item in model.kv})
    assert findings.wrong == ()
    known = (S003, S005, S006, S007)
    assert [k for k in known if any(k in line for line in findings.notes)] == list(AUDITED[case])


def test_a_good_template() -> None:
    lenient = CHATML.replace("m.content", "m.content if m.content is string else ''")
    assert found(lenient) == Findings()
    assert "a base model" in found(None).notes[0]
    assert of_metadata({}) == Findings()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "it does not compile: TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "it fails at a question (ValueError: no)"),
        ("hello", "it leaves the question out"),
        ("{{ messages[-1].content }}", "it leaves earlier answers out"),
        (CHATML + "{% if messages|length > 2 %}{{ 1 / 0 }}{% endif %}", "a second question (Zero"),
        (CHATML + "{{ messages.__class__ }}", "it asks for __class__"),
        (CHATML + "{{ messages['__init__'] }}", "it asks for __init__"),
        (CHATML + "{{ messages|attr('x') }}", "the filter attr"),
        (CHATML + "{% include 'other' %}", "it takes in another file"),
        (CHATML + "\u202e\u200b", "it hides characters: U+202E, U+200B"),
        (CHATML + "{% for i in range(10**9) %}{{ i }}{% endfor %}", "it fails at a question"),
        ("x" * (1 << 20) + "y", "1,048,577 characters"),
    ],
)
def test_what_is_wrong(template: str, words: str) -> None:
    assert words in "; ".join(found(template).wrong)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (CHATML + "{# https://evil.example/x #}", "it names https://evil.example/x"),
        (CHATML + "{{ strftime_now('%d') }}", "it writes today's date"),
        (CHATML.replace("im_start", "turn"), "it writes <|turn|>, which the vocabulary does not"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
         "it takes no system message"),
    ],
)  # fmt: skip
def test_what_to_know(template: str, words: str) -> None:
    findings = found(template)
    assert findings.wrong == ()
    assert words in "; ".join(findings.notes)


def test_a_template_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_findings, "SECONDS", 1)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert found(CHATML + loop).wrong[0].startswith("it cannot be rendered: ")


def test_named_templates_are_named() -> None:
    values = {"tokenizer.ggml.tokens": TOKENS, "tokenizer.chat_template": CHATML,
              "tokenizer.chat_template.rag": "{{ x }}"}  # fmt: skip
    assert of_metadata(values).wrong == ("rag: it leaves the question out",)


def test_inspect_tells(tmp_path: Path) -> None:
    source = from_recipe("ernie-end", tmp_path)
    done = CliRunner().invoke(app, ["inspect", "--headers", str(source)])
    assert "its template     it fails at content in parts" in done.stdout
    config = source / "tokenizer_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "chat_template": "{{ messages.__class__ }}"}))
    done = CliRunner().invoke(app, ["inspect", "--headers", "--json", str(source)])
    problems = json.loads(done.stdout)["problems"]
    assert problems[0].startswith("chat template: it asks for __class__, by which code is run")


def test_a_template_that_is_not_for_llama() -> None:
    """It is parsed, not compiled: nothing of it is computed."""
    good = {
        "default": "{% for m in messages %}{% generation %}{{ m['content'] | x }}"
        "{% endgeneration %}{% break %}{% endfor %}",
        "named": "{{ 'a' * 9 * 9 }}", "empty": "", "by name": "mistral-v7-tekken",
    }  # fmt: skip
    assert not_for_llama(good) == []
    fault, deep = not_for_llama(
        {"default": "a\n{% if %}", "rag": "{{ " + 5000 * "(" + 5000 * ")" + "}}"}
    )
    assert fault.startswith("the chat template is no Jinja (Expected an expression, got ")
    assert ", line 2): transformers cannot render it, nor can" in fault
    assert deep.startswith("the chat template 'rag' is no Jinja (maximum recursion depth")


def test_convert_says_so(tmp_path: Path) -> None:
    directory = write_files("qwen3moe", tmp_path)
    edit_json(directory / "tokenizer_config.json", chat_template="{% endfor %}")
    options = ConversionOptions(vocab_only=True)
    model = open_checkpoint(directory, "auto", Reading("qwen2", options))
    assert [n for n in model.notes if "no Jinja" in n]
