"""Help: in panels, with examples, cut off nowhere; and what a shell completes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from quantkit import __version__
from quantkit.cli import COMMANDS, app
from quantkit.commands.help import DOCS, OWN, PAGES, PANELS, UNSHOWN

ROOT = Path(__file__).parent.parent.parent
NAMES = [command.__name__ for command in COMMANDS]
KNOWN: Any = typer.main.get_command(app)
run = CliRunner().invoke


def shown(*arguments: str, columns: int = 80) -> str:
    result = run(app, [*arguments], env={"COLUMNS": str(columns), "TERMINAL_WIDTH": ""})
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_in_a_panel_with_what_it_takes(name: str) -> None:
    text = shown(name, "--help")
    titles = re.findall(r"^(\w+)$", text, re.MULTILINE)
    assert titles[0] == "Arguments"
    assert titles[-1] == "Examples"
    between = [title for title in titles[1:-1] if title != OWN]
    assert between == [panel for panel in PANELS if panel in between]
    for p in KNOWN.commands[name].params:
        assert p.help, p.name
        assert p.metavar or p.is_flag, p.name
        for option in {*p.opts, *p.secondary_opts} if p.param_type_name == "option" else ():
            assert (re.search(rf"(^|[ ]){option}\b", text) is None) == (option in UNSHOWN)


@pytest.mark.parametrize("name", [None, *NAMES])
@pytest.mark.parametrize("columns", [40, 58, 80, 100, 200])
def test_no_line_is_cut_off(name: str | None, columns: int) -> None:
    call = [name] if name else []
    text, wide = shown(*call, "-h", columns=columns), shown(*call, "-h", columns=200)
    *lines, address = text.splitlines()
    for line in lines:  # a word that is wider than the terminal has a line of its own
        assert len(line) <= min(columns, 100) or len(line.removesuffix(" \\").split()) == 1
    assert address.startswith(DOCS)
    assert "..." not in text.replace("COMMAND ...", "").replace("Q8_0 ...", "").replace(
        "FILE...", ""
    )
    words = [" ".join(t.replace("\\\n", "").split()) for t in (text, wide)]
    assert sorted(words[0].split()) == sorted(words[1].split())


@pytest.mark.parametrize("name", ["quantkit", *NAMES])
def test_examples_are_of_what_there_is(name: str) -> None:
    page, examples = PAGES[name]
    assert (ROOT / "docs" / page).is_file()
    assert len(examples) == 3
    for example in examples:
        program, command, *rest = shlex.split(example)
        assert program == "quantkit"
        assert name in ("quantkit", command)
        KNOWN.commands[command].make_context(command, rest)  # parses


def test_a_page_for_every_command() -> None:
    assert PAGES.keys() == {"quantkit", *NAMES}


def test_without_a_command_there_is_help() -> None:
    text = shown()
    assert text == shown("--help")
    for name in NAMES:
        assert re.search(rf"^  {name} ", text, re.MULTILINE)


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_package_runs_as_a_module(option: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quantkit", option], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, f"quantkit {__version__}\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("re", ["report", "release"]),
        ("quantize ckpt --type Q5_K", ["Q5_K_S", "Q5_K_M", "Q5_K_L"]),
        ("quantize ckpt -t q5_k", ["q5_k_s", "q5_k_m", "q5_k_l"]),
        ("release ckpt --types Q8_0,sta", ["Q8_0,static"]),
        ("release ckpt --drop tq", ["tq1_0", "tq2_0"]),
        ("convert ckpt --outtype b", ["bf16"]),
        ("report m.gguf --format m", ["markdown"]),
        ("quantize ckpt --split-", ["--split-max-size", "--split-max-tensors"]),
    ],
)
def test_a_shell_completes(words: str, offered: list[str]) -> None:
    line = f"quantkit {words}"
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_QUANTKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    command = [sys.executable, "-m", "quantkit"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == offered
