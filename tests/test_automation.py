"""The action, the workflow and the examples: they parse, and what they call is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from quantkit.cli import app

ROOT = Path(__file__).parent.parent
ACTION, WORKFLOW = ROOT / "action.yml", ROOT / ".github" / "workflows" / "release.yml"
DOCS = ("README.md", "docs/release.md", "docs/command_line.md", "docs/scaling.md",
        "examples/release.mk", "Makefile", "action.yml",
        "quantkit/releases/templates/card.md")  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def options() -> dict[str, set[str]]:
    """Every command's options."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        for name, c in commands.items()
    }


def calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of quantkit's in a text, with the options that they are given."""
    text = text.replace("\\\n", " ")
    for line in re.findall(r"(?:^|[\s/`$>(])quantkit ([a-z][^\n`|]*)", text):
        words = line.split("#")[0].split()
        yield words[0], [w.split("=")[0] for w in words if re.match(r"--?[a-zA-Z]", w)]


@pytest.mark.parametrize("name", DOCS)
def test_every_command_that_is_shown_is_there(name: str) -> None:
    known = options()
    shown = [call for call in calls((ROOT / name).read_text()) if call[0] in known]
    assert shown
    for command, given in shown:
        assert set(given) <= known[command], (command, given)


def test_the_action_passes_on_what_release_takes() -> None:
    action = load(ACTION)
    step = next(s for s in action["runs"]["steps"] if s.get("id") == "release")
    given = set(re.findall(r"(?<=[( ])--[a-z-]+", step["run"]))
    assert given <= options()["release"]
    assert {"--types", "--push", "--split-max-size", "--share", "--join", "--json"} <= given
    for value in [v for s in action["runs"]["steps"] for v in s.get("env", {}).values()]:
        asked = re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", value)
        assert asked, value
        assert asked[1] in action["inputs"]
    assert "${{" not in step["run"]  # what people type stays in variables, and is not a script


def test_the_workflow_calls_the_action_as_it_is() -> None:
    action, jobs = load(ACTION), load(WORKFLOW)["jobs"]
    steps = [s for job in jobs.values() for s in job["steps"] if s.get("uses") == "./"]
    assert len(steps) == 3
    for step in steps:
        assert step["with"].keys() <= action["inputs"].keys()
        assert {k for k, v in action["inputs"].items() if v.get("required")} <= step["with"].keys()
    assert [job.get("needs") for job in jobs.values()] == [None, "plan", "share"]
    asked = set(re.findall(r"inputs\.([a-z-]+)", WORKFLOW.read_text()))
    # YAML reads the key `on` as True
    assert asked == load(WORKFLOW)[True]["workflow_dispatch"]["inputs"].keys()  # type: ignore[index]


@pytest.mark.skipif(not shutil.which("bash"), reason="the action runs in bash")
def test_the_action_runs(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Its script, as GitHub would run it, for the shares of a set and the join."""
    shim = tmp_path / "bin" / "quantkit"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quantkit.cli "$@"\n')
    shim.chmod(0o755)
    action = load(ACTION)
    step = next(s for s in action["runs"]["steps"] if s.get("id") == "release")
    defaults = {
        name: action["inputs"][value[11:-3]].get("default", "")
        for name, value in step["env"].items()
    }

    def run(**given: str) -> dict[str, Any]:
        env = {
            **os.environ,
            **defaults,
            "SOURCE": str(checkpoint("mixtral-4x")),
            "TYPES": "Q4_0,Q8_0",
            "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RUNNER_TEMP": str(tmp_path),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            **given,
        }
        subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            env=env,
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        path = (tmp_path / "output").read_text().splitlines()[-1].removeprefix("summary=")
        return dict(json.loads(Path(path).read_text()))

    assert [f["state"] for f in run(DRY_RUN="true")["files"]] == ["to be made"] * 2
    made = [run(SHARE=f"{i}/2", OUTPUT=f"shares/{i}")["files"] for i in (1, 2)]
    assert [[f["type"] for f in files] for files in made] == [["Q4_0"], ["Q8_0"]]
    for path in (tmp_path / "shares").rglob("*.gguf"):
        shutil.move(path, tmp_path)
    (tmp_path / "release").mkdir()
    for path in tmp_path.glob("*.gguf"):
        shutil.move(path, tmp_path / "release")
    assert [f["state"] for f in run(JOIN="shares")["files"]] == ["kept"] * 2


def test_the_lowest_versions_are_those_that_are_allowed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    needed = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    needed += text.partition("\ncompile = [")[2].partition("]")[0]
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)', needed))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", lowest(), re.MULTILINE))
    assert allowed.keys() == tested.keys()
    for name, version in allowed.items():
        assert f"{tested[name]}.".startswith(f"{version}."), name
        assert not tested[name].removeprefix(version).strip(".0"), name


def lowest() -> str:
    return (ROOT / "constraints-lowest.txt").read_text()
