"""What a run wrote, or (dry) would write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.planning.plan import Output, Plan
from quantkit.reporting.table import as_html, planned_rows


@dataclass(frozen=True)
class Written:
    """The outputs of a run. `plan` holds them to the byte."""

    plan: Plan

    @property
    def files(self) -> list[Path]:
        """Every file of every output."""
        return [f.path for f in self.plan.files]

    def as_data(self, with_tensors: bool = False) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        data: dict[str, Any] = {
            "outputs": [_as_data(output, with_tensors) for output in self.plan.outputs]
        }
        before = list(self.plan.quantized_before)
        return data | ({"quantized_before": before} if before else {})

    def _repr_html_(self) -> str:
        return as_html(planned_rows(self.plan))


def _as_data(output: Output, with_tensors: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "type": output.type,
        "bytes": output.size,
        "bits_per_weight": round(output.bits_per_weight, 4),
        "fallback_weights": output.fallback_weights,
        "overridden_weights": output.overridden_weights,
        "files": [
            {"path": str(f.path), "bytes": f.size, "tensors": len(f.tensors)} for f in output.files
        ],
    }
    if with_tensors:
        data["tensors"] = [
            {"name": t.name, "shape": list(t.shape[::-1]), "format": t.format, "bytes": t.nbytes}
            for t in output.by_name.values()
        ]
    return data
