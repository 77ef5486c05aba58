"""What llama.cpp's Jinja makes of a template: its engine (common/jinja of the tree that the goldens
are of, in a program of its own) was asked about every construct here."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import Environment
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantkit.tokenizer.chat_template import environment, not_for_llama, renderer, template_text
from quantkit.tokenizer.llama_jinja import differences
from tests.vocabularies import cases, tiny_gguf, vocabulary, write_files

REFUSED = (
    "{{ 2 ** 3 }}", "{{ 7 // 2 }}", "{{ 1e3 }}", "{{ 1.5e-3 }}", "{{ 1_000 }}", "{{ 0x1F }}",
    "{{ 10000000000000000000 }}", "{{ (1,) }}", "{{ () }}", "{{ (1, 2,) }}", r"{{ '\x41' }}",
    r"{{ '\u0041' }}", "{{ é }}", "{% for m in messages recursive %}x{% endfor %}",
    "{% filter upper|lower %}abc{% endfilter %}", "{% with a=1 %}{{ a }}{% endwith %}",
    "{% raw %}{{ x }}{% endraw %}", "{% autoescape false %}x{% endautoescape %}",
    "{% block a %}x{% endblock %}", "{% include 'x' %}", "{% extends 'x' %}",
    "{% import 'x' as y %}", "{% from 'x' import y %}", "{%+ if s %}a{% endif %}",
    "{% if s +%}a{% endif %}", "{{ l[1,2] }}", "{{ dict(**d) }}",
    "{% call a.f() %}x{% endcall %}",
)  # fmt: skip
FAILS = (
    "{{ messages|groupby('role') }}", "{{ l|batch(2)|list }}", "{{ l|sum }}", "{{ l|unique|list }}",
    "{{ s|e }}", "{{ 2.5|round }}", "{{ s|truncate(5) }}", "{{ l|slice(2)|list }}",
    "{{ s|default }}", "{{ l|map('upper')|list }}", "{{ d|tojson(sort_keys=True) }}",
    "{{ s|replace('l', 'L', 1) }}", "{{ s.replace('l', 'L', 1) }}", "{{ ','.join(l) }}",
    "{{ s.find('o') }}", "{{ s.index('o') }}", "{{ s.isdigit() }}", "{{ s.splitlines() }}",
    "{{ s.removeprefix('He') }}", "{{ s.startswith(('H', 'x')) }}", "{{ '{0}'.format(1) }}",
    "{{ '%s' % 'a' }}", "{{ [1] * 2 }}", "{{ 'a' < s }}", "{{ 4 is le(4) }}", "{{ s is escaped }}",
    "{{ messages|selectattr('role', '==', 'user')|list }}",
    "{{ messages|selectattr('tool_calls', 'defined')|list }}", "{{ cycler('a', 'b') }}",
    "{% for m in messages %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{% endfor %}", "{{ range(*[3])|list }}",
    "{% set x | upper %}abc{% endset %}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f() }}",
)  # fmt: skip
OTHERWISE = (
    "{{ '%s-%d'|format('a', 3) }}", "{{ l|select('odd')|list }}", "{{ s.split()[0] }}",
    "{{ s.split(None, 1) }}", "{{ 1 < 2 == true }}", "a{% if s %}b{% endif %}",
    "\n{% if s %}b{% endif %}", "a {#- c -#} b",
    "{% macro f(a, b=1, c=2) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1, c=5) }}",
)  # fmt: skip
SAME = (
    "{{ s|upper|trim }}", "{{ l|join(', ') }}", "{{ d|items }}", "{{ d|tojson(indent=2) }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "{{ zz|default('q') }}",
    "{{ messages|selectattr('tool_calls')|list }}", "{{ messages|map(attribute='role')|list }}",
    "{{ s.split(' ')[-1].strip() }}", "{{ '{} {}'.format(1, 2) }}", "{{ l[::-1] }}", "{{ f(a,) }}",
    "{% set ns = namespace(x=0) %}{% set ns.x = 1 %}", "{% set a, b = 1, 2 %}", "{{ [1, 2,] }}",
    "{% for m in messages if m.role %}{% continue %}{% endfor %}", r"{{ 'a\n\'' }}", "{{ (1, 2) }}",
    "{% for k, v in d.items() %}{{ k }}{% endfor %}", "{{ range(0, 10, 3) }}", "{{ 1 - 1.5 }}",
    "{% macro f(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ f(b=3, a=4) }}{{ f(1) }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}in{% endcall %}", "{{ {'a': 1,} }}",
    "{% generation %}x{% endgeneration %}", "{{ strftime_now('%Y') }}", "a\n{% if s %}b{% endif %}",
    "{{ messages[0]['content'] if s is string else 'x' }}", "{{ raise_exception('x') }}",
    "ab{% if s %}b{% endif %}", " {% if s %}b{% endif %}", "\n{%- if s %}b{% endif %}", "{{- s }}",
)  # fmt: skip


@pytest.mark.parametrize(
    ("templates", "verdict"),
    [(REFUSED, "refused"), (FAILS, "fails"), (OTHERWISE, "otherwise"), (SAME, "")],
)
def test_constructs(templates: tuple[str, ...], verdict: str) -> None:
    for template in templates:
        found = differences(environment(Environment), template_text(template))
        first = next((kind for kind in found._fields if getattr(found, kind)), "")
        assert first == verdict, template


def test_what_is_said() -> None:
    refused, fails = not_for_llama(
        {
            "default": "{{ 1 }}\n{% with %}{{ 7 // 2 }}{% endwith %}",
            "rag": "{{ s|sum }}{{ s|sum }}{{ s|e }}{{ s|round }}{{ s|pprint }}",
        }
    )
    assert refused == (
        "the chat template has {% with %} (line 2), the operator // (line 2), which llama.cpp "
        "cannot parse: it will serve the model with another template only (--chat-template)"
    )
    assert fails.startswith(
        "the chat template 'rag' uses the filter sum (line 1), the filter e (line 1), the filter "
        "round (line 1) and 1 more, which llama.cpp has not: "
    ), fails


def test_marks_for_training_keep_what_they_do_to_spaces() -> None:
    template = (
        "a\n{%- generation -%} x {%- endgeneration %}\n  {% generation %}\ny{% endgeneration %}"
    )
    assert renderer(template, {})([]) == "axy"
    assert renderer("{{ [1]|tojson(true, 1) }}", {})([]) == "[\n 1\n]"
    assert environment(ImmutableSandboxedEnvironment).filters["tojson"]({"é": 1}) == '{"é": 1}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "served"), [(REFUSED[0], False), (FAILS[0], False), (SAME[0], True)]
)
def test_at_the_runtime(template: str, served: bool, tmp_path: Path) -> None:
    """llama.cpp's server renders a plain conversation when it starts."""
    from tests.runtime import Llama

    case = "mixtral-4x"
    vocab = vocabulary(write_files(case, tmp_path), cases()[case]["pre"])
    vocab.special.templates = {"default": template}
    file = tiny_gguf(vocab, tmp_path / "tiny.gguf")
    if served:
        assert Llama(file).tokenize("a")
    else:
        with pytest.raises(RuntimeError, match="Failed to init server"):
            Llama(file)
