"""What a person sees of a job: at a terminal, in a log, when quiet and when all is wanted."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from quantkit.cli import app
from quantkit.commands import console, verify
from quantkit.commands.console import TerminalProgress, clock
from quantkit.progress import Detail
from quantkit.reporting import table
from quantkit.reporting.table import Row, as_table, columns

run = CliRunner().invoke
GB = 10**9


def row(kind: str, size: int, **more: object) -> Row:
    name = f"Some-Merged-Model-8x22B-{kind}.gguf"
    use = "a use case of quite a few words, as they are"
    return Row(name, kind, 4, 4.8453, size, size, 1, size + GB, size, 4096, use, **more)  # type: ignore[arg-type]


ROWS = [
    row("Q4_K_M", 85 * GB, experts_on_cpu_ram_bytes=80 * GB, experts_on_cpu_vram_bytes=6 * GB),
    row("IQ2_XXS-moe", 38 * GB, experts_on_cpu_ram_bytes=30 * GB, experts_on_cpu_vram_bytes=9 * GB),
]
SHOWN = columns(["name", "type", "bits", "size", "ram", "experts-on-cpu", "fits-ram", "use"])


@pytest.mark.parametrize("width", [30, 40, 58, 80, 100, 140, 250])
def test_numbers_and_types_are_never_cut(width: int) -> None:
    drawn, left = as_table(ROWS, SHOWN, width)
    out = io.StringIO()
    Console(file=out, width=width).print(drawn)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for column in SHOWN:
        cells = [column.cell(row) for row in ROWS]
        if column.name == "use":
            continue
        for cell in cells:
            assert (f" {cell} " in text) == (column not in left), (cell, text)
    assert columns(["type"])[0] not in left
    assert (left == []) == (width == 250)
    assert [c.name for c in left] == [c.name for c in SHOWN if c in left]


@pytest.mark.parametrize(
    ("width", "heading"),
    [(60, "Tensor   Error   Expected  Bytes"), (25, "Tensor   Error   Bytes"),
     (18, "Tensor   Error"), (5, "Tensor   Error")],
)  # fmt: skip
def test_plain_tables_too(width: int, heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("Tensor", "Error", "Expected", "Bytes"), ("output", "0.0714", "0.0713", "same")]
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(verify.sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    lines = verify._table(rows, ("Expected", "Bytes"))
    assert lines[0].split() == heading.split()
    assert lines[1].startswith("output  0.0714")


def test_every_column_has_its_turn() -> None:
    assert set(table.FIRST_TO_GO) == {column.name for column in table.COLUMNS}


def test_what_is_left_out_is_said(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    run(app, ["convert", str(checkpoint("mixtral-4x")), "-o", str(path)])
    monkeypatch.setenv("COLUMNS", "50")
    result = run(app, ["report", str(tmp_path), "--format", "table"])
    assert result.stderr.startswith(
        "no room for: name, use; a wider terminal, or --format markdown"
    )
    assert "16 (16.0" in result.stdout


@pytest.mark.parametrize("width", [20, 40, 58, 80, 100])
def test_a_bar_is_one_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    bar = console._bar("taking checksums", 8_640_000_000)
    bar.stop()
    bar.update(bar.tasks[0].id, completed=6_170_000_000)
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(bar.get_renderable())
    lines = out.getvalue().rstrip("\n").splitlines()
    assert len(lines) == 1
    if width >= 40:
        assert re.search(r"taking checksums .* 71%", lines[0])


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with TerminalProgress() as progress:
        for i in range(13):
            progress.update("Q4_K_M", i * GB, 120 * GB)
            now += 5
        progress.update("taking checksums", GB, 2 * GB)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Q4_K_M: 2% of 120.00 GB, 200.00 MB/s, 9:45 left",
        "Q4_K_M: 5% of 120.00 GB, 200.00 MB/s, 9:30 left",
        "Q4_K_M: 7% of 120.00 GB, 200.00 MB/s, 9:15 left",
        "Q4_K_M: 10% of 120.00 GB, 200.00 MB/s, 9:00 left",
    ]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, ["note: news"]),
        ({"quiet": True}, []),
        ({"verbose": True}, ["note: news", "note: as always", "Q8_0: 1.00 GB in 2.0 s"]),
    ],
)
def test_how_much_is_said(
    options: dict[str, bool],
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with TerminalProgress(**options) as progress:
        progress.tell("news")
        progress.tell(Detail("as always"))
        progress.update("Q8_0", 0, GB)
        now += 2
        progress.update("Q8_0", GB, GB)
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (187, "3:07"), (3723, "1:02:03")]
)
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text
