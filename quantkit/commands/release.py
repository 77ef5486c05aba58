"""The command that releases: release."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options
from quantkit.commands.console import TerminalProgress, say
from quantkit.plain_text import one_line

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits
    from quantkit.model.open import Reading
    from quantkit.releases.release import Release


class Commit(str, Enum):
    """How a push is divided into commits."""

    each = "each"
    all = "all"


@options.takes(reading=options.reading_and_layout, splits=options.splitting, run=options.running)
def release(
    source: options.SourceArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to fill.")],
    types: Annotated[
        str | None,
        typer.Option("--types", help="Such as Q4_K_M,Q8_0 (default: eight, from Q2_K to Q8_0)."),
    ] = None,
    recipe: options.Recipe = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="ORG/MODEL on the Hub that this is made of.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="ORG/NAME: bring the release to the Hub.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="The repository, if it is new.")
    ] = None,
    commit: Annotated[
        Commit, typer.Option("--commit", help="Each GGUF file in a commit, or all in one.")
    ] = Commit.each,
    share: Annotated[
        str | None,
        typer.Option("--share", help="Only a share of the files, such as 3/16; no card."),
    ] = None,
    join: Annotated[
        list[Path], typer.Option("--join", help="Where shares were made. May be repeated.")
    ] = [],  # noqa: B006
    discard: Annotated[
        bool,
        typer.Option(
            "--discard", help="Remove each file once it is on the Hub: a small disk will do."
        ),
    ] = False,
    context: options.Context = None,
    imatrix: options.ImatrixOrAuto = None,
    calibration: options.Calibration = [],  # noqa: B006
    allow_requantize: options.AllowRequantize = False,
    *,
    reading: Reading,
    splits: Splits,
    run: dict[str, Any],
    as_json: options.Json = False,
) -> None:
    """Make a whole release: every type, the model card, the sums, a Modelfile, a manifest."""
    from quantkit import api
    from quantkit.hub.push import HubTarget
    from quantkit.releases.release import parse_share

    target = HubTarget(push, private, commit.value) if push else None
    with TerminalProgress() as progress:
        made = api.release(
            source,
            output,
            options.names(types) if types else None,
            recipe=recipe,
            push=target,
            discard=discard,
            base_model=base_model,
            share=parse_share(share) if share else None,
            join=join,
            context=context,
            imatrix=imatrix,
            calibration=calibration,
            allow_requantize=allow_requantize,
            splits=splits,
            reading=reading,
            progress=progress,
            **run,
        )
    for note in made.notes:
        say(f"note: {one_line(note)}", err=True)
    if as_json:
        typer.echo(json.dumps({**_summary(made), "seconds": round(progress.seconds, 3)}, indent=2))
        return
    from quantkit.reporting.numbers import gigabytes

    for f in made.manifest.files:
        path, state = made.directory / f.name, made.states[f.name]
        say(f"{path}  {f.type}  {gigabytes(f.nbytes)}  {state}")
    state = "to be pushed" if run["dry_run"] else "pushed"
    for name in made.pushed:
        say(f"{push}/{name}  {state}")


def _summary(made: Release) -> dict[str, Any]:
    """The manifest without its tensors, and what was done."""
    files = [
        {
            "name": f.name,
            "type": f.type,
            "bytes": f.nbytes,
            "sha256": f.sha256 or None,
            "state": made.states[f.name],
        }
        for f in made.manifest.files
    ]
    data = made.manifest.as_data()
    kept = ("quantkit", "name", "source", "architecture", "parameters", "experts", "repo")
    return {
        "directory": str(made.directory),
        **{key: data[key] for key in kept},
        "files": files,
        "left": [f.name for f in made.manifest.left],
        "pushed": list(made.pushed),
    }
