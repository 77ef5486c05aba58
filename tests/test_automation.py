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
        "examples/release.mk", "Makefile", "action.yml")  # fmt: skip


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


def pages() -> list[Path]:
    """The Markdown that people read."""
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


OTHERS = {  # options of other programs that the pages name
    "--lora", "--index-url", "--extra-index-url", "--args", "--build", "--target", "--write",
    "--local-dir", "--remote", "--load-mode", "--no-mmap", "--cpu-moe", "--cache-ram",
    "--cache-type-k", "--dequantize", "--in-file", "--kl-divergence", "--version",
}  # fmt: skip


def test_every_option_is_on_a_page_and_no_other() -> None:
    text = "\n".join(path.read_text() for path in pages())
    known = set().union(*options().values())
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        for p in command.params:
            if p.param_type_name == "option":
                assert any(o in text for o in (*p.opts, *p.secondary_opts)), (name, p.opts)
    for quoted in re.findall(r"`[^`\n]*`", text):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", quoted):
            assert option in known | OTHERS, quoted


def test_every_link_leads_somewhere() -> None:
    def anchor(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")

    texts = {p: re.sub(r"^```.*?^```", "", p.read_text(), flags=re.S | re.M) for p in pages()}
    anchors = {p: set(map(anchor, re.findall(r"^#+ (.*)$", t, re.M))) for p, t in texts.items()}
    for path, text in texts.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, part = link.partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), (path.name, link)
            assert not part or part in anchors[there], (path.name, link)


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
    given = set(re.findall(r"(?<=[( ])--[a-z][a-z-]*", step["run"]))
    assert given <= options()["release"]
    assert {"--types", "--push", "--split-max-size", "--share", "--join", "--json"} <= given
    assert {"--discard", "--recipe", "--memory", "--pre", "--force", "--kl"} <= given
    used = set()
    for each in action["runs"]["steps"]:
        for value in each.get("env", {}).values():
            asked = re.fullmatch(r"\$\{\{ (inputs\.([a-z-]+)|github\.action_path) \}\}", value)
            assert asked, value
            used.add(asked[2])
        # what people type stays in variables, and is not a script
        assert "${{" not in each.get("run", "")
    assert used - {None} == action["inputs"].keys()


def test_every_action_of_others_is_pinned() -> None:
    for path in [ACTION, *WORKFLOW.parent.glob("*.yml")]:
        for used in re.findall(r"uses: (.*)", path.read_text()):
            if used != "./":
                assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


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


def step_of_the_action(key: str, name: str, tmp_path: Path) -> Callable[..., int]:
    """A step of the action's as GitHub would run it in a directory: a function of its environment,
    which gives the exit code."""
    action = load(ACTION)
    step = next(s for s in action["runs"]["steps"] if s.get(key) == name)
    commands = tmp_path / "bin"
    commands.mkdir()
    for command, words in ("quantkit", "-m quantkit.cli"), ("python", ""):
        (commands / command).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (commands / command).chmod(0o755)
    defaults = {
        key: action["inputs"].get(value[11:-3], {}).get("default", "")
        for key, value in step["env"].items()
    }

    def run(**given: str) -> int:
        env = {
            **os.environ,
            **defaults,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RUNNER_TEMP": str(tmp_path),
            **{
                f"GITHUB_{file}": str(tmp_path / file.lower())
                for file in ("OUTPUT", "ENV", "STEP_SUMMARY")
            },
            **given,
        }
        script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        return subprocess.run(script, env=env, cwd=tmp_path, capture_output=True).returncode

    return run


@pytest.mark.skipif(not shutil.which("bash"), reason="the action runs in bash")
def test_what_the_action_caches(tmp_path: Path) -> None:
    run, output = step_of_the_action("id", "cached", tmp_path), tmp_path / "output"
    for given in {}, {}, {"VERSION": "0.1.0"}:
        assert run(ACTION=str(ROOT), **given) == 0
    keys = output.read_text().splitlines()
    assert all(re.fullmatch(r"key=[0-9a-f]{20}", key) for key in keys)
    assert keys[0] == keys[1] != keys[2]
    kept = load(ACTION)["runs"]["steps"][2]["with"]["path"].replace("${{ runner.temp }}", "")
    for line in (tmp_path / "env").read_text().splitlines():
        assert line.partition("=")[2].startswith(f"{tmp_path}{kept}/"), line


@pytest.mark.skipif(not shutil.which("bash"), reason="the action runs in bash")
def test_the_action_runs(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Its script for the shares of a set and the join, and for a source that is not there."""
    step = step_of_the_action("id", "release", tmp_path)

    def run(code: int = 0, **given: str) -> dict[str, Any]:
        defaults = {"SOURCE": str(checkpoint("mixtral-4x")), "TYPES": "Q4_0,Q8_0"}
        assert step(**{**defaults, **given}) == code
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
    assert [f["state"] for f in run(JOIN="shares", MEMORY="1GB")["files"]] == ["kept"] * 2
    table = (tmp_path / "step_summary").read_text().rpartition("###")[2].splitlines()
    assert re.fullmatch(r"\| \S+Q8_0\.gguf \| Q8_0 \| 0\.00 GB \| 0\.0\d+% \| kept \|", table[-1])
    assert run(code=1, SOURCE="nowhere")["error"]["kind"] == "SourceNotFound"
    assert "**SourceNotFound**" in (tmp_path / "step_summary").read_text()
    assert run(code=2, KL="a\nb", DISCARD="true")["error"]["kind"] == "UsageError"


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
