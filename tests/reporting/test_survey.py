"""What can be made of a source, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from quantkit.reporting.survey import survey


def test_a_table_in_a_notebook(checkpoint: Callable[[str], Path]) -> None:
    found = survey(checkpoint("mixtral-4x"), ["Q4_0", "Q8_0"], disk=10**9)
    text = found._repr_html_()
    assert text.count("<tr>") == 3
    assert "<th>Fits on disk</th>" in text
    assert "<th>Fits in RAM</th>" not in text
    assert "<th>Experts on the CPU</th>" in text
    hostile = replace(found, rows=(replace(found.rows[0], type="<script>alert(1)</script>"),))
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in hostile._repr_html_()
