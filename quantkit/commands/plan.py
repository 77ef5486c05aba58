"""The command that says what would come of a source, and what of it fits: plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options, values
from quantkit.commands.console import print_json, print_table, say
from quantkit.plain_text import one_line

if TYPE_CHECKING:
    from quantkit.model.open import Reading
    from quantkit.reporting.survey import Survey
    from quantkit.reporting.table import Column


@options.takes(reading=options.reading, shown=options.table)
def plan(
    source: options.SourceArgument,
    types: options.Types = [],  # noqa: B006
    context: options.Context = None,
    ram: options.Ram = None,
    disk: Annotated[
        str | None,
        typer.Option(
            "--disk",
            metavar="SIZE",
            rich_help_panel=options.MACHINE,
            help="Mark what this much disk holds: 20GB.",
        ),
    ] = None,
    allow_requantize: options.AllowRequantize = False,
    split_max_size: options.MaxSize = None,
    *,
    reading: Reading,
    shown: tuple[list[Column] | None, options.TableFormat | None],
) -> None:
    """Say what quantize would make of a source, from headers alone: sizes, memory, what fits."""
    from quantkit import api

    space = values.size("--disk", disk)
    survey = api.plan(
        source,
        values.names(types),
        context=context,
        ram=values.size("--ram", ram),
        disk=space,
        allow_requantize=allow_requantize,
        splits=options.splitting(split_max_size),
        reading=reading,
    )
    for note in _refusals(survey.refused):
        say(f"note: {one_line(note)}", err=True)
    columns, style = shown
    if style is options.TableFormat.json and columns is None:
        print_json(_json(survey, space))
        return
    print_table(survey.rows, columns or survey.columns, style)
    if style in (None, options.TableFormat.table, options.TableFormat.markdown):
        say("\n" + "\n".join(map(one_line, _below(survey, space))))


def _below(survey: Survey, disk: int | None) -> list[str]:
    """What the table does not say: the model, the context, the whole set."""
    from quantkit.reporting.inspection import describe
    from quantkit.reporting.numbers import billions, gigabytes
    from quantkit.reporting.survey import fitting

    description = describe(survey.model)
    count, of_experts = description.parameters, ""
    if experts := description.experts:
        active = billions(count.active)
        of_experts = f", {active} active; {experts.count} experts, {experts.used} used"
    lines = [
        f"{survey.model.name}: {billions(count.total)} parameters{of_experts}. "
        f"Max RAM is for {survey.rows[0].context} tokens of context."
    ]
    total = sum(row.file_bytes for row in survey.release)
    if len(survey.release) > 1:
        names = ", ".join(row.type for row in survey.release)
        lines.append(f"A release of {names}: {gigabytes(total)}.")
        if disk is not None:
            held = fitting(survey.release, disk)
            which = "all" if len(held) == len(survey.release) else ", ".join(held) or "none"
            lines.append(f"Of it, {gigabytes(disk)} of disk holds {which} at once.")
    return lines


def _refusals(refused: dict[str, str]) -> list[str]:
    """One line a type, or one for all where there are many."""
    if len(refused) < 3:
        return list(refused.values())
    first = next(iter(refused.values()))
    return [f"{len(refused)} types cannot be made ({', '.join(refused)}); the first: {first}"]


def _json(survey: Survey, disk: int | None) -> dict[str, Any]:
    from quantkit.reporting import table
    from quantkit.reporting.inspection import describe
    from quantkit.reporting.survey import fitting

    description = describe(survey.model).as_data()
    outputs = table.as_json(survey.rows)
    for row, output in zip(outputs, survey.plan.outputs, strict=True):
        row["files"] = [
            {"path": str(f.path), "bytes": f.size, "tensors": len(f.tensors)} for f in output.files
        ]
    return {
        "name": survey.model.name,
        "architecture": survey.model.arch,
        "parameters": description["parameters"],
        "experts": description.get("experts"),
        "outputs": outputs,
        "refused": survey.refused,
        "release": {
            "types": [row.type for row in survey.release],
            "file_bytes": sum(row.file_bytes for row in survey.release),
            "fits_disk": None if disk is None else fitting(survey.release, disk),
        },
    }
