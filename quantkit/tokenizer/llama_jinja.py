"""What llama.cpp's own Jinja makes of a chat template otherwise than Python's, which templates are
written for.

Its engine knows a part of the language. A template is the source's, and is written as it came; so
the lines here say what a file's reader will find. They are told from the text and its syntax tree,
and so name only what is so whatever a conversation holds: a filter that there is not, and not one
that there is for lists alone.

Facts of llama.cpp's `common/jinja` (MIT): `lexer.cpp`, `parser.cpp`, `runtime.cpp`, `value.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

SHOWN = 3  # of anything that there may be many of


class Differences(NamedTuple):
    """What is in a template, each with its line: `refused`, which llama.cpp cannot parse; `fails`,
    at which it stops when a conversation gets there; `otherwise`, which it renders otherwise."""

    refused: tuple[str, ...] = ()
    fails: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same for people, as what "the chat template" has."""
        out = []
        if self.refused:
            out.append(
                f"has {_some(self.refused)}, which llama.cpp cannot parse: it will serve the model "
                "with another template only (--chat-template)"
            )
        if self.fails:
            out.append(
                f"uses {_some(self.fails)}, which llama.cpp has not: a conversation that gets "
                "there fails, and if any does, the model is not served"
            )
        if self.otherwise:
            out.append(f"has {_some(self.otherwise)}, which llama.cpp renders otherwise")
        return out


def differences(environment: Environment, template: str) -> Differences:
    """What llama.cpp makes otherwise of a template that the `environment` can parse. Raises what
    that does."""
    found: dict[str, dict[str, None]] = {"refused": {}, "fails": {}, "otherwise": {}}
    for source in (_of_tokens(environment, template), _of_tree(environment.parse(template))):
        for verdict, what, line in source:
            at = f" (line {line})"
            if not any(said.rpartition(" (")[0] == what for said in found[verdict]):
                found[verdict][what + at] = None
    return Differences(**{verdict: tuple(said) for verdict, said in found.items()})


def _some(texts: tuple[str, ...]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


Found = Iterator[tuple[str, str, int]]  # the verdict, what it is, its line

# --- the text ---------------------------------------------------------------------------------

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = "ntrbfv\\'\""
# a first character with nothing but blanks before the first block goes with them
_LOST = re.compile(r"(?:\S[^\S\n]*\{[%#]|\n[^\S\n]*\{[%#](?!-))")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_CALLED = ("name", "string")  # before a bracket that is a call's


def _of_tokens(environment: Environment, template: str) -> Found:
    if (lost := _LOST.match(template)) and not template.startswith(("{%", "{#", "{{")):
        yield "otherwise", f"{lost[0][:1]!r} before its first block", 1
    brackets: list[bool] = []  # of each that is open: whether it is a call's
    last = ("", "")
    comma = False
    for line, kind, text in environment.lex(template):
        if kind in ("whitespace", "comment"):
            continue
        if kind == "string" and (bad := _unknown_escape(text)):
            yield "refused", f"the escape {bad}", line
        elif kind in ("integer", "float") and not _is_plain(text):
            yield "refused", f"the number {text[:40]}", line
        elif kind == "name" and not text.isascii():
            yield "refused", f"the name {text[:40]}", line
        elif kind == "raw_begin":
            yield "refused", "{% raw %}", line
        elif "+" in text and kind in ("block_begin", "block_end"):
            yield "refused", "a '+' at the edge of a block", line
        if comma and (kind, text) == ("operator", ")"):
            yield "refused", "a tuple that ends with a comma", line
        comma = False
        if kind == "operator":
            if text in "([{":
                brackets.append(text != "(" or last[0] in _CALLED or last[1] in (")", "]"))
            elif text in ")]}" and brackets:
                brackets.pop()
            comma = text == "," and not (brackets and brackets[-1])
        last = (kind if text not in _KEYWORDS else "", text)


_KEYWORDS = frozenset({
    "in", "is", "not", "and", "or", "if", "else", "elif", "set", "for", "call", "filter",
})  # fmt: skip


def _is_plain(number: str) -> bool:
    """Whether a number is digits, with or without a point among them, and fits into 64 bits."""
    return bool(_NUMBER.fullmatch(number)) and ("." in number or int(number) < 1 << 63)


def _unknown_escape(text: str) -> str:
    return next((m[0] for m in _ESCAPE.finditer(text[1:-1]) if m[1] not in _ESCAPES), "")


# --- the syntax tree --------------------------------------------------------------------------

_STATEMENTS = {
    "With": "with", "ScopedEvalContextModifier": "autoescape", "Block": "block",
    "Include": "include", "Import": "import", "FromImport": "from", "Extends": "extends",
}  # fmt: skip
_OPERATORS = {"FloorDiv": "//", "Pow": "**"}
# Jinja's own that there are not, or that end in "not implemented" for all that they are for
_FILTERS = frozenset({
    "attr", "batch", "center", "e", "escape", "filesizeformat", "forceescape", "groupby",
    "pprint", "random", "round", "slice", "striptags", "sum", "truncate", "unique", "urlencode",
    "urlize", "wordcount", "wordwrap", "xmlattr",
})  # fmt: skip
_TESTS = frozenset({"le", "escaped", "filter"})
_GLOBALS = frozenset({"cycler", "joiner", "lipsum"})
# Python's methods of texts, lists and tables that there are; `loop` has none
_METHODS = frozenset({
    "upper", "lower", "strip", "rstrip", "lstrip", "title", "capitalize", "startswith",
    "endswith", "split", "rsplit", "replace", "format", "append", "pop", "sort", "reverse",
    "get", "keys", "values", "items",
})  # fmt: skip
_OF_LOOPS = frozenset({"cycle", "changed"})
_PYTHON = _OF_LOOPS | {n for kind in (str, list, dict) for n in dir(kind) if n[0] != "_"}
_LESS = frozenset({"lt", "lteq", "gt", "gteq"})


def _of_tree(tree: nodes.Template) -> Found:
    from jinja2 import nodes

    macros = {node.name: node for node in tree.find_all(nodes.Macro)}
    for node in tree.find_all(nodes.Node):
        kind, line = type(node).__name__, getattr(node, "lineno", 1)
        if name := _STATEMENTS.get(kind):
            yield "refused", f"{{% {name} %}}", line
        elif kind in _OPERATORS:
            yield "refused", f"the operator {_OPERATORS[kind]}", line
        elif isinstance(node, nodes.Tuple) and node.ctx == "load" and len(node.items) < 2:
            yield "refused", "a tuple of fewer than two", line
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Tuple):
            yield "refused", "a tuple as an index", line
        elif isinstance(node, nodes.For):
            if node.recursive:
                yield "refused", "a recursive loop", line
            if _nested(node.target):
                yield "fails", "names in brackets in a loop", line
        elif isinstance(node, nodes.FilterBlock) and node.filter.node is not None:
            yield "refused", "a block of several filters", line
        elif isinstance(node, nodes.CallBlock) and not isinstance(node.call.node, nodes.Name):
            yield "refused", "a call block of what is no name", line
        elif isinstance(node, nodes.AssignBlock) and node.filter is not None:
            yield "fails", "a filter on a set block", line
        elif isinstance(node, nodes.Compare):
            yield from _of_comparison(node)
        elif isinstance(node, nodes.Mod) and _is_text(node.left):
            yield "fails", "a text % values", line
        elif isinstance(node, nodes.Mul) and any(
            isinstance(side, nodes.List) for side in (node.left, node.right)
        ):
            yield "fails", "a list times a number", line
        elif isinstance(node, nodes.Filter):
            yield from _of_filter(node)
        elif isinstance(node, nodes.Test) and node.name in _TESTS:
            yield "fails", f"the test '{node.name}'", line
        elif isinstance(node, nodes.Call):
            yield from _of_call(node, macros)


def _nested(target: Any) -> bool:
    from jinja2 import nodes

    inside = target.items if isinstance(target, nodes.Tuple) else []
    return any(isinstance(item, nodes.Tuple) for item in inside)


def _is_text(node: Any) -> bool:
    return isinstance(getattr(node, "value", None), str)


def _of_comparison(node: nodes.Compare) -> Found:
    if len(node.ops) > 1:
        yield "otherwise", "one comparison after another", node.lineno
    sides = [node.expr, *(operand.expr for operand in node.ops)]
    if any(operand.op in _LESS for operand in node.ops) and any(map(_is_text, sides)):
        yield "fails", "texts compared by their order", node.lineno


def _of_filter(node: nodes.Filter) -> Found:
    name, args = node.name, node.args
    given: dict[Any, Any] = {pair.key: pair.value for pair in node.kwargs}
    if name in _FILTERS:
        yield "fails", f"the filter {name}", node.lineno
    elif name == "map" and args:
        yield "fails", "the filter map with a filter's name", node.lineno
    elif name in ("default", "d") and not args and not given:
        yield "fails", "the filter default without a value", node.lineno
    elif name == "tojson" and getattr(given.get("sort_keys"), "value", None):
        yield "fails", "tojson with sort_keys", node.lineno
    elif name == "replace" and len(args) > 2:
        yield "fails", "the filter replace with a count", node.lineno
    elif name == "format" and _is_text(node.node) and "%" in str(getattr(node.node, "value", "")):
        yield "otherwise", "the filter format", node.lineno
    elif name in ("select", "reject", "selectattr", "rejectattr"):
        yield from _of_selection(node)


def _of_selection(node: nodes.Filter) -> Found:
    """llama.cpp tells them apart by the number of values alone."""
    name, args = node.name, node.args
    by_attribute = name.endswith("attr")
    if not args:
        yield "fails", f"the filter {name} without a test", node.lineno
    elif not by_attribute and len(args) == 1:
        yield "otherwise", f"the filter {name} with a test alone", node.lineno
    elif by_attribute and len(args) == 2:
        yield "fails", f"the filter {name} with a test that takes no value", node.lineno
    elif len(args) > 1:
        test = getattr(args[1 if by_attribute else 0], "value", None)
        if isinstance(test, str) and (test in _TESTS or not test.isidentifier()):
            yield "fails", f"the test '{test}'", node.lineno


def _of_call(node: nodes.Call, macros: Mapping[str, nodes.Macro]) -> Found:
    from jinja2 import nodes

    line, callee, args = node.lineno, node.node, node.args
    if node.dyn_kwargs is not None:
        yield "refused", "values by name from a table (**)", line
    elif node.dyn_args is not None:
        yield "fails", "values from a list (*)", line
    if isinstance(callee, nodes.Name):
        if callee.name in macros:
            yield from _of_macro(node, macros[callee.name])
        elif callee.name in _GLOBALS:
            yield "fails", f"the function {callee.name}", line
    elif isinstance(callee, nodes.Getattr) and callee.attr in _PYTHON:
        name = callee.attr
        if name not in _METHODS:
            yield "fails", f"the method {name}", line
        elif name == "replace" and len(args) > 2:
            yield "fails", "the method replace with a count", line
        elif name in ("startswith", "endswith") and args and isinstance(args[0], nodes.Tuple):
            yield "fails", f"the method {name} with several texts", line
        elif name in ("split", "rsplit") and (
            not args or (isinstance(args[0], nodes.Const) and args[0].value is None)
        ):
            yield "otherwise", f"the method {name} at all spaces", line
        elif name == "format" and re.search(r"\{[^}]", str(getattr(callee.node, "value", ""))):
            yield "fails", "the method format with names or widths", line


def _of_macro(node: nodes.Call, macro: nodes.Macro) -> Found:
    """llama.cpp binds as many parameters as there are values, the first ones, whatever the names
    of the values; the rest take their defaults."""
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        return
    names = [arg.name for arg in macro.args]
    given = {pair.key for pair in node.kwargs} | set(names[: len(node.args)])
    bound = names[: len(node.args) + len(node.kwargs)]
    required = names[: len(names) - len(macro.defaults)]
    if [name for name in required if name not in bound]:
        yield "fails", f"the macro {macro.name} with fewer values than it takes", node.lineno
    elif given - set(bound) or set(bound) - given:
        yield "otherwise", f"the macro {macro.name} with values by name", node.lineno
