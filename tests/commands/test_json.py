"""What `--json` prints is what docs/quantkit.schema.json says, whatever the command does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quantkit import errors
from quantkit.cli import app
from quantkit.commands.console import SCHEMA

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads((ROOT / "docs" / "quantkit.schema.json").read_text())
DEFS: dict[str, Any] = DOCUMENT["$defs"]
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
         "integer": int, "number": (int, float)}  # fmt: skip
TEXT = Path(__file__).parents[1] / "data" / "text" / "held-c.txt"


def wrong(value: Any, schema: Any, where: str = "$") -> list[str]:
    """Where a value is not what a schema says, as far as ours use JSON Schema."""
    known = {"type", "properties", "required", "additionalProperties", "items", "enum", "const",
             "minimum", "description", "$ref", "anyOf", "oneOf"}  # fmt: skip
    assert set(schema) <= known
    if "$ref" in schema:
        return wrong(value, DEFS[schema["$ref"].removeprefix("#/$defs/")], where)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            found = [wrong(value, s, where) for s in schema[key]]
            good = sum(not lines for lines in found)
            fine = good == 1 if key == "oneOf" else good
            return [] if fine else [f"{where}: none of {key}: {found}"]
    names = schema.get("type", [])
    types = [KINDS[name] for name in ([names] if isinstance(names, str) else names)]
    is_flag = isinstance(value, bool)
    if types and not any(isinstance(value, t) and (is_flag == (t is bool)) for t in types):  # type: ignore[arg-type]
        return [f"{where}: {value!r} is not {names}"]
    if "const" in schema and value != schema["const"]:
        return [f"{where}: {value!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r}"]
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        return [f"{where}: {value!r}"]
    lines: list[str] = []
    if isinstance(value, dict):
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", False)
        lines += [f"{where}: no {key}" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            if key in properties:
                lines += wrong(item, properties[key], f"{where}.{key}")
            elif rest is False:
                lines.append(f"{where}: {key} is not documented")
            else:
                lines += wrong(item, rest, f"{where}.{key}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            lines += wrong(item, schema["items"], f"{where}[{i}]")
    return lines


def printed(*arguments: object, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def source(frankenmoe: dict[str, Path]) -> Path:
    return frankenmoe["mergekit"]


def test_every_command(
    source: Path,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:8000])
    seeing = checkpoint("qwen3vl-mmproj")
    asked: list[tuple[str, list[object]]] = [
        ("written", ["convert", source, "-o", "base.gguf"]),
        ("written", ["quantize", source, "-t", "Q8_0", "-t", "Q4_K_M", "-o", "."]),
        ("written", ["quantize", source, "-t", "Q6_K", "--dry-run"]),
        ("written", ["split", "base.gguf", "-o", "part", "--split-max-tensors", "20"]),
        ("written", ["merge", "part-00001-of-00002.gguf", "-o", "whole.gguf"]),
        ("written", ["edit", "base.gguf", "--set", "general.name=other", "-o", "edited.gguf"]),
        ("plan", ["plan", source, "--ram", "1GB", "--disk", "1GB"]),
        ("plan", ["plan", "base.gguf", "--types", "Q4_K_M"]),
        ("report", ["plan", source, "--types", "Q4_K_M", "--columns", "name,size"]),
        ("report", ["report", "base.gguf", "whole.gguf"]),
        ("report", ["report", "base.gguf", "--columns", "name,ram"]),
        ("inspect", ["inspect", source]),
        ("inspect", ["inspect", "--headers", "base.gguf"]),
        ("inspect", ["inspect", "--architectures"]),
        ("inspect", ["inspect", seeing]),
        ("written", ["convert", seeing, "--mmproj", "-o", "mmproj.gguf"]),
        ("inspect", ["inspect", "mmproj.gguf"]),
        ("report", ["report", "mmproj.gguf"]),
        ("verify", ["verify", "mmproj.gguf"]),
        ("imatrix", ["imatrix", "base.gguf", "-f", text, "-o", "a.gguf", "--chunks", "1"]),
        ("imatrix", ["imatrix", "a.gguf", "--merge", "-o", "b.gguf"]),
        ("imatrix", ["imatrix", "a.gguf", "--show-statistics"]),
        ("imatrix", ["imatrix", "a.gguf", "b.gguf", "--show-statistics"]),
        ("release", ["release", source, "-o", "with", "-t", "Q2_K", "--imatrix", "a.gguf"]),
        ("release", ["release", seeing, "-o", "seeing", "-t", "Q8_0"]),
        ("release", ["release", source, "-o", "out", "-t", "Q8_0", "--dry-run"]),
        ("release", ["release", source, "-o", "out", "-t", "Q8_0", "--kl", text]),
        ("verify", ["verify", "base.gguf"]),
        ("verify", ["verify", "base.gguf", "--against", source, "--run", "--kl", text]),
        ("verify", ["verify", "out"]),
        ("fit", ["fit", source, "--bpw", "4.5", "-o", "fit.gguf"]),
    ]
    for name, arguments in asked:
        found = printed(*arguments)
        assert wrong(found, DEFS[name]) == [], arguments
        assert next(iter(found)) == "schema"
        assert found["schema"] == SCHEMA == DEFS["schema"]["const"]
    assert {name for name, _ in asked} | {"error"} == {
        name for name, schema in DEFS.items() if "schema" in json.dumps(schema) and name != "schema"
    }


def test_bytes_are_those_on_the_disk(source: Path, tmp_path: Path) -> None:
    output = printed("quantize", source, "-t", "Q8_0", "-o", tmp_path)["outputs"][0]
    assert output["bytes"] == sum(f["bytes"] for f in output["files"])
    for f in output["files"]:
        assert f["bytes"] == Path(f["path"]).stat().st_size
    planned = printed("plan", source, "--types", "Q8_0")["outputs"][0]
    assert [f["bytes"] for f in planned["files"]] == [output["bytes"]] == [planned["file_bytes"]]

    def named(schema: Any) -> list[Any]:
        inside = schema.values() if isinstance(schema, dict) else schema
        found = [s for part in inside if isinstance(part, dict | list) for s in named(part)]
        return found + ([schema["bytes"]] if isinstance(schema, dict) and "bytes" in schema else [])

    assert all(s == {"$ref": "#/$defs/bytes"} for s in named({k: v for k, v in DEFS.items()
                                                              if k != "bytes"}))  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["inspect", "/nowhere"], "SourceNotFound", 1),
        (["inspect", "/nowhere", "--bogus"], "UsageError", 2),
        (["quantize", "/nowhere", "-t", "Q9"], "UsageError", 2),
        (["bogus"], "UsageError", 2),
        (["fit", "/nowhere", "--bpw", "4", "--recipe-file", "/nowhere/x"], "SourceNotFound", 1),
    ],
)
def test_errors(arguments: list[str], kind: str, code: int) -> None:
    command = [sys.executable, "-c", "from quantkit.cli import main; main()", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code
    found = json.loads(done.stdout)
    assert wrong(found, DEFS["error"]) == []
    error = found["error"]
    assert (error["kind"], error["exit_code"]) == (kind, code)
    assert hasattr(errors, kind)
    assert done.stderr.splitlines()[-1] == f"error: {error['text']}"


def test_an_error_as_json_where_a_table_is_asked_for() -> None:
    command = [sys.executable, "-c", "from quantkit.cli import main; main()", "report", "/nowhere"]
    for more, is_json in (["--format", "json"], True), (["--format=json"], True), ([], False):
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1
        assert bool(done.stdout) == is_json


def test_the_page_names_every_object() -> None:
    page = (ROOT / "docs" / "json.md").read_text()
    named = set(re.findall(r"\| `(\w+)` \|$", page, re.MULTILINE))
    assert named == {
        "written",
        "release",
        "plan",
        "report",
        "inspect",
        "verify",
        "fit",
        "imatrix",
        "error",
    }
    (example,) = re.findall(r"```json\n(.*?)\n```", page)
    assert wrong(json.loads(example), DEFS["error"]) == []
