"""The table: its columns, and its formats, in which nothing of a name is markup."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit.cli import app
from quantkit.errors import UsageError
from quantkit.jobs import Run, convert, quantize
from quantkit.reporting import table
from quantkit.reporting.table import Row

run = CliRunner().invoke

ROW = Row(
    name="A|B_<i>c</i>, *d* [e](f) `g` & \\h_.gguf", type="Q4_K_M", nominal_bits=4,
    bits_per_weight=4.8744, tensor_bytes=28447728640, file_bytes=28448464864, files=1,
    max_ram_bytes=29238771712, mapped_ram_bytes=50642186240, context=4096,
    use_case="balanced: the usual choice", experts_on_cpu_ram_bytes=27632820224,
    experts_on_cpu_vram_bytes=2230116352,
)  # fmt: skip


def test_markdown() -> None:
    head, line, row = table.as_markdown([ROW]).splitlines()
    assert head == "| Name | Quant method | Bits | Size | Max RAM required | Use case |"
    assert line == "| --- | --- | --- | --- | --- | --- |"
    name, *cells = re.split(r" (?<!\\)\| ", row.removeprefix("| ").removesuffix(" |"))
    assert cells == [
        "Q4_K_M",
        "4 (4.87 bpw)",
        "28.45 GB (26.49 GiB)",
        "29.24 GB",
        "balanced: the usual choice",
    ]
    assert name == r"A\|B\_\<i\>c\</i\>, \*d\* \[e\](f) \`g\` \& \\h\_.gguf"
    assert re.sub(r"\\(.)", r"\1", name) == ROW.name
    assert "\n" not in table.as_markdown([replace(ROW, name="a\nb")]).split("\n", 2)[2]


def test_html() -> None:
    text = table.as_html([ROW, ROW])
    assert text.count("<tr>") == 3
    assert "<i>" not in text
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", text)]
    assert cells[0] == ROW.name
    assert len(cells) == 12


def test_csv_and_json_have_numbers() -> None:
    (found,) = csv.DictReader(io.StringIO(table.as_csv([ROW])))
    assert found["name"] == ROW.name
    assert int(found["file_bytes"]) == ROW.file_bytes
    assert table.as_json([ROW])[0] == json.loads(json.dumps(table.as_json([ROW])))[0]
    chosen = table.columns(["type", "ram"])
    assert table.as_json([ROW], chosen) == [
        {"type": "Q4_K_M", "max_ram_bytes": 29238771712, "context": 4096}
    ]
    assert table.as_csv([ROW], chosen).splitlines()[0] == "type,max_ram_bytes,context"


def test_a_drawn_table_shows_names_as_they_are() -> None:
    from rich.console import Console

    text = io.StringIO()
    odd = replace(ROW, name="[bold]x[/bold].gguf")
    Console(file=text, width=200).print(table.as_table([odd])[0])
    assert "[bold]x[/bold].gguf" in text.getvalue()


def test_columns() -> None:
    shown = table.columns(["name", "experts-on-cpu", "mapped", "files"])
    assert table.as_markdown([replace(ROW, name="x")], shown).splitlines()[2] == (
        "| x | 27.63 GB RAM + 2.23 GB VRAM | 50.64 GB | 1 |"
    )
    dense = replace(ROW, experts_on_cpu_ram_bytes=None, experts_on_cpu_vram_bytes=None)
    assert table.as_markdown([dense], shown[1:2]).splitlines()[2] == "| - |"
    copied = replace(ROW, nominal_bits=None)
    assert table.as_markdown([copied], table.columns(["bits"])).endswith("| 4.87 bpw |")
    with pytest.raises(UsageError, match="unknown column 'colour'; columns: name, type"):
        table.columns(["name", "colour"])


def test_the_command(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    convert(checkpoint("mixtral-4x"), path)
    base = ["report", str(path), "--columns", "name,size"]
    assert run(app, base).stdout.splitlines()[0] == "| Name | Size |"
    size = path.stat().st_size
    assert run(app, [*base, "--format", "csv"]).stdout == f"name,file_bytes\nsmall.gguf,{size}\n"
    assert json.loads(run(app, [*base, "--format", "json"]).stdout) == json.loads(
        run(app, [*base, "--json"]).stdout
    )
    assert "┃ Name" in run(app, [*base, "--format", "table"]).stdout
    assert run(app, [*base, "--format", "html"]).stdout.startswith("<table>\n<thead>")
    assert run(app, [*base, "--format", "pdf"]).exit_code == 2


def test_types_with_the_ends_in_q8_0_are_told_apart(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """They have the `general.file_type` of the type that they are like."""
    kinds = ["Q4_K_M", "Q4_K_L", "Q6_K", "Q6_K_L", "Q8_0"]
    plan = quantize(checkpoint("mixtral-4x"), kinds, tmp_path)
    rows = table.read_rows([f.path for f in plan.files])
    assert rows == table.planned_rows(plan)
    assert [row.type for row in rows] == kinds
    ends = table.Weights("token_embd.weight", (512, 192), "Q8_0")  # 192: no block of Q6_K
    assert table._type_of(18, [ends, ends._replace(name="output.weight")]) == "Q6_K"


def test_rows_of_a_plan_need_no_file(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    plan = quantize(checkpoint("mixtral-4x"), ["Q4_0"], tmp_path, run=Run(dry=True))
    assert list(tmp_path.iterdir()) == []
    (planned,) = table.planned_rows(plan)
    quantize(checkpoint("mixtral-4x"), ["Q4_0"], tmp_path)
    assert table.read_rows([f.path for f in plan.files]) == [planned]
