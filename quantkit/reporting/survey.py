"""What can be made of a source, and what of that fits: from headers alone, nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.model.model import Model
from quantkit.model.open import AS_IT_IS, Reading, open_source
from quantkit.planning.build import PLAIN, Request, plan_possible
from quantkit.planning.plan import Plan
from quantkit.recipes.file_types import RECIPES, RELEASE_TYPES, find_recipe
from quantkit.reporting.table import Column, Row, as_html, columns, planned_rows
from quantkit.source.location import SourceLike


@dataclass(frozen=True)
class Survey:
    """The outputs that can be made of a source, a row for each, and why others cannot, by type.

    `release`: the rows of a release: of the types that were named, or of the usual set.
    """

    model: Model
    plan: Plan
    rows: tuple[Row, ...]
    refused: dict[str, str]
    release: tuple[Row, ...]

    @property
    def columns(self) -> list[Column]:
        """The columns that say something of these rows."""
        optional = {
            "experts-on-cpu": any(row.experts_on_cpu_ram_bytes is not None for row in self.rows),
            "fits-ram": any(row.fits_ram is not None for row in self.rows),
            "fits-disk": any(row.fits_disk is not None for row in self.rows),
        }
        extra = [name for name, has_any in optional.items() if has_any]
        return columns(["type", "bits", "size", "ram", *extra, "use"])

    def _repr_html_(self) -> str:
        return as_html(self.rows, self.columns)


def survey(
    source: SourceLike,
    types: Sequence[str] = (),
    context: int | None = None,
    *,
    ram: int | None = None,
    disk: int | None = None,
    reading: Reading = AS_IT_IS,
    request: Request = PLAIN,
) -> Survey:
    """The table of what `quantize` would make of a source: of all types, if none is named.

    `ram` and `disk`: bytes that each row is held against. Raises QuantkitError.
    """
    recipes = list(dict.fromkeys(map(find_recipe, types))) or list(RECIPES)
    model = open_source(source, reading)
    outputs = [(recipe, Path(f"{model.name}-{recipe.name}.gguf")) for recipe in recipes]
    plan, refused = plan_possible(model, outputs, request)
    rows = tuple(
        replace(
            row,
            fits_ram=None if ram is None else row.max_ram_bytes <= ram,
            fits_disk=None if disk is None else row.file_bytes <= disk,
        )
        for row in planned_rows(plan, context, model.kv)
    )
    release = tuple(row for row in rows if types or row.type in RELEASE_TYPES)
    return Survey(model, plan, rows, {name: str(e) for name, e in refused.items()}, release)


def fitting(rows: Sequence[Row], disk: int) -> list[str]:
    """The types that fit on a disk together: as many as possible, the smallest first."""
    held, out = 0, []
    for row in sorted(rows, key=lambda row: row.file_bytes):
        held += row.file_bytes
        if held <= disk:
            out.append(row.type)
    return out
