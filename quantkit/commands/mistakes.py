"""What people type that is not quite what a command takes: taken as it is meant, or answered with
the words to type."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from quantkit.commands import values
from quantkit.errors import UsageError
from quantkit.recipes.file_types import RECIPES, SETS, find_recipe

# options of llama.cpp's tools -> what does the same here
ELSEWHERE: Mapping[str, str] = {
    "--remote": "write hf://ORG/MODEL as the source",
    "--model-name": "it is one of convert; quantize has --override-kv general.name=str:NAME",
    "--print-supported-models": "quantkit inspect --architectures lists what is converted",
    "--ftype": "the type is --type of quantize, --outtype of convert",
    "--quant": "the type is --type",
    "--nthreads": "the number of threads is --threads",
    "--repo": "the repository is named with --push ORG/NAME",
    "--token": "log in with `hf auth login` or set HF_TOKEN",
    "--max-memory": "the bound is --memory",
    "--out": "the output is named with -o",
    "--output-dir": "the output is named with -o",
    "--outdir": "the output is named with -o",
}

NUMBERS = {"N": "a whole number", "TOKENS": "a whole number", "BITS": "a number"}  # by metavar


def is_type(word: str) -> bool:
    """Whether a word is the name of a type, or of a set of types, and of no file here."""
    if Path(word).exists():
        return False
    if word.lower() in SETS:
        return True
    try:
        find_recipe(word)
    except UsageError:
        return False
    return True


_PLACES = ("DIR", "FILE", "MODEL", "PATH", "SOURCE")  # of options that name a file or a directory


def check_empty(command: Any, args: Sequence[str]) -> None:
    """An empty word is no path, though `Path` takes it for the directory at hand: a variable of the
    shell was not set. Raises UsageError."""
    options = {name: p for p in command.params for name in p.opts}
    for word, last in zip(args, ["", *args], strict=False):
        name, equals, value = word.partition("=")
        if word and not (equals and not value and name in options):
            continue
        option = options.get(name if equals else last)
        if option is None or option.param_type_name == "argument" or option.is_flag:
            given = "an argument"
        elif option.metavar in _PLACES:
            given = name if equals else last
        else:
            continue
        raise UsageError(f"{given} is empty; is a variable of the shell not set?")


def check_tilde(command: Any, args: Sequence[str]) -> None:
    """A ~ that the shell has left as it is (in quotes, after =) would be the name of a directory.
    Raises UsageError."""
    options = {name: p for p in command.params for name in p.opts}
    for word, last in zip(args, ["", *args], strict=False):
        name, equals, value = word.partition("=")
        option = options.get(name if equals and name.startswith("-") else last)
        path = value if equals and name in options else word
        is_place = option is None or option.is_flag or option.metavar in _PLACES
        first = path.partition("/")[0]
        if first.startswith("~") and is_place and not Path(first).exists():
            raise UsageError(
                f"{path}: the shell leaves ~ as it is in quotes and after =; write $HOME, or "
                f"./{path} if it is called so"
            )


def others_given(command: Any, args: Sequence[str]) -> list[str]:
    """The options among the words of a command, with their values, but for those that a command
    with words in another tool's order is given anew."""
    options = {name: p for p in command.params for name in p.opts}
    kept: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, _ = word.partition("=")
        if (option := options.get(name)) is None or option.param_type_name == "argument":
            continue
        value = [] if option.is_flag or equals else [next(words, "")]
        if option.name not in ("types", "output"):
            kept += [word, *value]
    return kept


def settle_words(
    command: str,
    params: dict[str, Any],
    argument: str,
    rest: Sequence[str],
    given: Sequence[str] = (),
) -> None:
    """Put words that stand alone where they belong: types after `--type` are types. `params` are
    the command's, `argument` the name of its one positional, `rest` what came after that, `given`
    the options to be repeated.

    Raises UsageError, which says what to type.
    """
    if late := [word for word in rest if word.startswith("-")]:
        raise UsageError(f"{late[0]} stands after --, where no options are; write it before that")
    words = [str(word) for word in (params[argument], *rest) if word is not None]
    kinds = [word for word in words if is_type(word)]
    others = [word for word in words if word not in kinds]
    if params.get("types") and len(others) == 1:
        params[argument], params["types"] = others[0], [*params["types"], *kinds]
        return
    meant = _meant(command, params, others, kinds, given)
    raise UsageError(meant or f"what is {rest[0]!r} for?")


def _meant(
    command: str,
    params: Mapping[str, Any],
    others: list[str],
    kinds: list[str],
    options: Sequence[str],
) -> str:
    """The command that was meant by words in llama.cpp's order; empty if it cannot be told."""
    numbers = [word for word in others if word.isdecimal()]
    source, *others = [word for word in others if word not in numbers]
    given = ["quantkit", command, source]
    kinds = [*values.names(params.get("types") or []), *kinds]
    if command == "quantize" and not kinds and numbers:  # llama-quantize takes numbers of types
        number = int(numbers.pop(0))
        kinds = [r.name for r in RECIPES if r.file_type == number and r.base and not r.like]
    if command == "quantize" and not kinds:
        kinds = ["Q4_K_M"]
    if command in ("quantize", "release", "plan"):
        for kind in kinds:
            given += ["--type", kind if kind.lower() in SETS else find_recipe(kind).name]
    elif kinds:
        return f"{command} takes no type; quantize does: {_one('quantize', source, kinds)}"
    if len(others) > ("output" in params):
        return f"one source is expected, and {len(others) + 1} are given: {source}, {others[0]} ..."
    if others:
        given += ["-o", others[0]]
    elif params.get("output") is not None:
        given += ["-o", str(params["output"])]
    if numbers and command == "quantize":
        given += ["--threads", numbers[0]]
    return f"say it with options: {shlex.join([*given, *options])}"


def _one(command: str, source: str, kinds: Iterable[str]) -> str:
    return shlex.join(["quantkit", command, source, "--type", ",".join(kinds)])


def quantized_outtype(source: str, outtype: str) -> None:
    """Raises UsageError for an `--outtype` that `quantize` makes, with the command to give."""
    if is_type(outtype):
        kind = outtype if outtype.lower() in SETS else find_recipe(outtype).name
        raise UsageError(
            f"--outtype is auto, f32, f16, bf16, q8_0, tq1_0 or tq2_0; {kind} is made by quantize: "
            f"{_one('quantize', source, [kind])}"
        )


def unknown_command(name: str, known: Sequence[str]) -> str:
    """Words for a command that there is not."""
    if Path(name).exists() or name.lower().endswith(".gguf") or name.startswith("hf://"):
        look = shlex.join(["quantkit", "inspect", name])
        return f"{name!r} is no command; to see what it is: {look}"
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"no command {name!r}; {hint}commands: {', '.join(known)}"


def words(error: Any, commands: Mapping[str, Any]) -> str:
    """What typer says of wrong usage, in one line and in our words; the same for all its versions.
    `commands` are all there are, by name."""
    context, kind = error.ctx, type(error).__name__
    command = context.command.name if context else ""
    see = f"quantkit {command} --help" if command in commands else "quantkit --help"
    param = getattr(error, "param", None)
    if kind == "NoSuchOption":
        if called := [w for w in context.find_root().obj or () if _is_file_like(w, error)]:
            return f"no option {called[0]}; if the file or directory is meant, write ./{called[0]}"
        return f"no option {error.option_name}; {_instead(error, command, commands)}see {see}"
    if kind == "MissingParameter" and param is not None:
        what = (param.help or "").rstrip(".")
        what = what if what[1:2].isupper() else what[:1].lower() + what[1:]
        return f"{_name(param)} is missing: {what}; see {see}"
    if kind == "BadOptionUsage":
        option = next((o for o in _options(context) if error.option_name in o.opts), None)
        if option and option.is_flag:
            return f"{error.option_name} takes no value; see {see}"
        value = f", {option.metavar}" if option and option.metavar else ""
        return f"{error.option_name} takes a value{value}; see {see}"
    if param is not None and param.metavar in NUMBERS:
        least = getattr(param, "min", None) or getattr(getattr(param, "type", None), "min", None)
        what = NUMBERS[param.metavar] + (f" from {least}" if least else "")
        return f"{_name(param)}: {_given(param, context)!r} is not {what}; see {see}"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; see {see}"


def _is_file_like(word: str, error: Any) -> bool:
    """Whether a word that was taken for options names something here."""
    return word.startswith(error.option_name) and Path(word).exists()


def _instead(error: Any, command: str, commands: Mapping[str, Any]) -> str:
    """What could be given in place of an option that there is not."""
    name = error.option_name
    if name in ELSEWHERE:
        return f"{ELSEWHERE[name]}; "
    of = [c for c in commands if any(name in p.opts for p in commands[c].params)]
    if of:
        return f"it is one of {', '.join(of)}; "
    known = [n for p in _options(error.ctx) for n in (*p.opts, *p.secondary_opts)]
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


def _given(option: Any, context: Any) -> str:
    """What was typed for an option."""
    words = iter(context.find_root().obj)
    for word in words:
        name, equals, value = word.partition("=")
        if name in option.opts:
            return str(value if equals else next(words, ""))
    return ""


def _options(context: Any) -> list[Any]:
    found = context.command.params if context else []
    return [p for p in found if p.param_type_name == "option"]


def _name(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    return str(max(param.opts, key=len))
