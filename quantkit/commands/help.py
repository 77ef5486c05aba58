"""Help as `--help` prints it: arguments, options in panels, examples and the docs.

It is made here from what typer knows of a command, so that it is the same with every version of
typer, wraps at the terminal's width and cuts no line off.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

DOCS = "https://github.com/quantkit/quantkit/blob/main/docs"
# the order of panels; a command's own options, which are in none, stand before them
PANELS = ("Types", "Output", "Hub", "Splits", "Experts", "Conversion", "Machine")
OWN = "Options"
UNSHOWN = ("--outfile",)  # names that are taken because other tools have them
WIDEST, NARROWEST = 100, 20  # characters
LABELS = 30  # the most that names of options take of a line

# command -> page of the docs, examples
PAGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "quantkit": ("index.md", (
        "quantkit quantize ./My-Merge-4x7B --type Q4_K_M",
        "quantkit release ./My-Merge-4x7B -o out --push org/My-Merge-4x7B-GGUF",
        "quantkit plan hf://org/model --ram 16GB",
    )),
    "convert": ("index.md", (
        "quantkit convert ./My-Merge-4x7B",
        "quantkit convert ./My-Merge-4x7B --outtype f16 -o model-F16.gguf",
        "quantkit convert hf://org/model --split-max-size 4G -o out",
    )),
    "quantize": ("recipes.md", (
        "quantkit quantize ./My-Merge-4x7B --type Q4_K_M",
        "quantkit quantize hf://org/model --types Q4_K_M,Q6_K,Q8_0 -o out",
        "quantkit quantize model-BF16.gguf --type IQ3_M --imatrix model.imatrix",
    )),
    "imatrix": ("imatrix.md", (
        "quantkit imatrix ./My-Merge-4x7B -f calibration.txt -o m.imatrix.gguf",
        "quantkit imatrix --merge a.gguf b.dat -o c.gguf",
        "quantkit imatrix m.imatrix.gguf --show-statistics",
    )),
    "split": ("index.md", (
        "quantkit split model-Q8_0.gguf --split-max-size 4G",
        "quantkit split model-Q8_0.gguf --split-max-tensors 128 -o parts",
        "quantkit split hf://org/model/model-Q8_0.gguf --split-max-size 4G",
    )),
    "merge": ("index.md", (
        "quantkit merge model-00001-of-00003.gguf -o model.gguf",
        "quantkit merge parts/model-00002-of-00003.gguf -o model.gguf --force",
        "quantkit merge hf://org/model/model-00001-of-00003.gguf -o model.gguf",
    )),
    "edit": ("edit.md", (
        "quantkit edit model-Q4_K_M.gguf --chat-template chat.jinja -o fixed.gguf",
        "quantkit edit model-Q4_K_M.gguf --set tokenizer.ggml.eos_token_id=2 --in-place",
        "quantkit edit hf://org/model/model-Q8_0.gguf --remove general.url -o out",
    )),
    "inspect": ("index.md", (
        "quantkit inspect ./My-Merge-4x7B",
        "quantkit inspect model-Q4_K_M.gguf --headers",
        "quantkit inspect --architectures",
    )),
    "report": ("memory.md", (
        "quantkit report out",
        "quantkit report *.gguf --ctx 32768",
        "quantkit report out --columns type,size,ram --format csv",
    )),
    "plan": ("memory.md", (
        "quantkit plan ./My-Merge-4x7B",
        "quantkit plan hf://org/model --types Q4_K_M,Q6_K --ctx 32768",
        "quantkit plan ./My-Merge-4x7B --ram 16GB --disk 60GB",
    )),
    "release": ("release.md", (
        "quantkit release ./My-Merge-4x7B -o out",
        "quantkit release ./My-Merge-4x7B -o out --types Q4_K_M,Q8_0 --push org/name",
        "quantkit release ./My-Merge-4x7B -o out --drop Q8_0",
    )),
    "verify": ("verify.md", (
        "quantkit verify model-Q4_K_M.gguf",
        "quantkit verify model-Q4_K_M.gguf --against ./My-Merge-4x7B",
        "quantkit verify out --run",
    )),
    "fit": ("fit.md", (
        "quantkit fit ./My-Merge-4x7B --size 12GB -o out",
        "quantkit fit ./My-Merge-4x7B --ram 16GB --ctx 8192",
        "quantkit fit model-BF16.gguf --bpw 4.5 --formats Q3_K,Q4_K,Q6_K",
    )),
}  # fmt: skip


def of_command(command: Any) -> str:
    """The help of one command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    panels: dict[str, list[tuple[str, str]]] = {name: [] for name in (OWN, *PANELS)}
    for p in command.params:
        if p.param_type_name == "option" and not p.hidden:
            panels[p.rich_help_panel or OWN].append((_label(p), p.help or ""))
    panels[PANELS[-1]].append(("-h, --help", "Show this."))
    usage = " ".join(["quantkit", command.name, *map(_metavar, arguments), "[OPTIONS]"])
    sections = {"Arguments": [(_metavar(p), p.help or "") for p in arguments], **panels}
    return _page(command.name, usage, command.help, sections)


def of_group(group: Any) -> str:
    """The help of the whole."""
    commands = [(name, _first(c.help)) for name, c in group.commands.items()]
    options = [(_label(p), p.help or "") for p in group.params if p.param_type_name == "option"]
    options.append(("-h, --help", "Show this; after a command, what it takes."))
    sections = {"Commands": commands, OWN: options}
    return _page("quantkit", "quantkit COMMAND ...", group.help, sections)


def _page(
    name: str, usage: str, words: str | None, sections: Mapping[str, Sequence[tuple[str, str]]]
) -> str:
    width = max(min(shutil.get_terminal_size().columns, WIDEST), NARROWEST)
    lines = [*_wrapped(usage, width, "Usage: ", "       "), ""]
    lines += [*_wrapped(" ".join((words or "").split()), width), ""]
    longest = [len(label) for rows in sections.values() for label, _ in rows]
    left = min(max(longest, default=0) + 4, LABELS, width // 2)
    for title, rows in sections.items():
        if rows:
            lines += [typer.style(title, bold=True), *_listed(rows, left, width), ""]
    page, examples = PAGES[name]
    lines += [typer.style("Examples", bold=True), *_commands(examples, width), ""]
    return "\n".join([*lines, f"{DOCS}/{page}"])


def _listed(rows: Iterable[tuple[str, str]], left: int, width: int) -> list[str]:
    lines = []
    for label, words in rows:
        text = _wrapped(words, width - left) or [""]
        if len(label) + 4 > left:  # under its name, where there is no room beside it
            lines.append(f"  {label}")
        else:
            lines.append(f"  {label}".ljust(left) + text.pop(0))
        lines += [" " * left + line for line in text]
    return [line.rstrip() for line in lines]


def _commands(examples: Iterable[str], width: int) -> list[str]:
    """Commands to copy: a line that goes on ends with a backslash."""
    lines = []
    for example in examples:
        parts = _wrapped(example, width - 2, "  ", "      ")
        lines += [f"{part} \\" for part in parts[:-1]] + parts[-1:]
    return lines


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 1),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _label(option: Any) -> str:
    """The names of an option, and what stands for its value."""
    names = sorted((n for n in option.opts if n not in UNSHOWN), key=lambda n: n.startswith("--"))
    names = [", ".join(names), *option.secondary_opts]
    value = "" if option.is_flag or not option.metavar else f" {option.metavar}"
    return " / ".join(names) + value


def _metavar(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required else f"[{name}]"


def _first(words: str | None) -> str:
    """The first sentence, without its full stop."""
    return " ".join((words or "").split()).partition(". ")[0].rstrip(".")
