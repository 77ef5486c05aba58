"""The command that says what would come of a source, and what of it fits: plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands.console import print_table
from quantkit.commands.options import (
    Columns,
    Context,
    ExpertsUsed,
    Format,
    Json,
    KeepExperts,
    MaxSize,
    Mtp,
    NoMtp,
    Pre,
    columns_of,
    reading_of,
    splits_of,
)

if TYPE_CHECKING:
    from quantkit.reporting.survey import Survey


def plan(
    source: Annotated[str, typer.Argument(help="A checkpoint directory, a GGUF file, or hf://...")],
    types: Annotated[
        str | None, typer.Option("--types", help="Such as Q4_K_M,Q8_0 (default: all).")
    ] = None,
    context: Context = None,
    ram: Annotated[
        str | None, typer.Option("--ram", help="Mark what runs in this much memory: 16GB.")
    ] = None,
    disk: Annotated[
        str | None, typer.Option("--disk", help="Mark what this much disk holds: 20GB.")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Of what is quantized already, too.")
    ] = False,
    split_max_size: MaxSize = None,
    pre: Pre = None,
    experts_used: ExpertsUsed = None,
    keep_experts: KeepExperts = None,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
    columns: Columns = None,
    table_format: Format = None,
    as_json: Json = False,
) -> None:
    """Say what quantize would make of a source, from headers alone: sizes, memory, what fits."""
    from quantkit.gguf.splits import parse_size
    from quantkit.planning.build import Request
    from quantkit.reporting import table
    from quantkit.reporting.survey import survey

    space = parse_size(disk) if disk else None
    found = survey(
        source, [name.strip() for name in types.split(",")] if types else (), context,
        ram=parse_size(ram) if ram else None, disk=space,
        reading=reading_of(pre, experts_used, keep_experts, mtp, no_mtp, False, False, False),
        request=Request(
            splits=splits_of(split_max_size, 0, False), allow_requantize=allow_requantize
        ),
    )  # fmt: skip
    for note in _refusals(found.refused):
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(_json(found, space), indent=2))
        return
    shown = columns_of(columns) or table.columns(_columns(found, ram, disk))
    print_table(found.rows, shown, table_format)
    if table_format in (None, "table", "markdown"):
        typer.echo("\n" + "\n".join(_below(found, space)))


def _columns(found: Survey, ram: str | None, disk: str | None) -> list[str]:
    mixture = any(row.experts_on_cpu_ram_bytes is not None for row in found.rows)
    asked = {"experts-on-cpu": mixture, "fits-ram": ram, "fits-disk": disk}
    extra = [name for name, wanted in asked.items() if wanted]
    return ["type", "bits", "size", "ram", *extra, "use"]


def _below(found: Survey, disk: int | None) -> list[str]:
    """What the table does not say: the model, the context, the whole set."""
    from quantkit.reporting.inspection import describe
    from quantkit.reporting.numbers import billions, gigabytes
    from quantkit.reporting.survey import fitting

    facts = describe(found.model)
    count = facts["parameters"]
    said = ""
    if experts := facts.get("experts"):
        active = billions(count["active"])
        said = f", {active} active; {experts['count']} experts, {experts['used']} used"
    lines = [
        f"{found.model.name}: {billions(count['total'])} parameters{said}. "
        f"Max RAM is for {found.rows[0].context} tokens of context."
    ]
    total = sum(row.file_bytes for row in found.release)
    if len(found.release) > 1:
        names = ", ".join(row.type for row in found.release)
        lines.append(f"A release of {names}: {gigabytes(total)}.")
        if disk is not None:
            held = fitting(found.release, disk)
            which = "all" if len(held) == len(found.release) else ", ".join(held) or "none"
            lines.append(f"Of it, {gigabytes(disk)} of disk holds {which} at once.")
    return lines


def _refusals(refused: dict[str, str]) -> list[str]:
    """One line a type, or one for all where there are many."""
    if len(refused) < 3:
        return list(refused.values())
    first = next(iter(refused.values()))
    return [f"{len(refused)} types cannot be made ({', '.join(refused)}); the first: {first}"]


def _json(found: Survey, disk: int | None) -> dict[str, Any]:
    from quantkit.reporting import table
    from quantkit.reporting.inspection import describe
    from quantkit.reporting.survey import fitting

    facts = describe(found.model)
    outputs = table.as_json(found.rows)
    for row, output in zip(outputs, found.plan.outputs, strict=True):
        row["files"] = [
            {"path": str(f.path), "bytes": f.size, "tensors": len(f.tensors)} for f in output.files
        ]
    return {
        "name": found.model.name,
        "architecture": found.model.arch,
        "parameters": facts["parameters"],
        "experts": facts.get("experts"),
        "outputs": outputs,
        "refused": found.refused,
        "release": {
            "types": [row.type for row in found.release],
            "file_bytes": sum(row.file_bytes for row in found.release),
            "fits_disk": None if disk is None else fitting(found.release, disk),
        },
    }
