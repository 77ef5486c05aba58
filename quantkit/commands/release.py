"""The command that releases: release."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands import options, values
from quantkit.commands.console import TerminalProgress, clock, print_json, say

if TYPE_CHECKING:
    from quantkit.gguf.splits import Splits
    from quantkit.model.open import Reading
    from quantkit.releases.release import Release


COMMITS = ("each", "all")  # how a push is divided


@options.takes(
    reading=options.reading_and_layout,
    splits=options.splitting,
    run=options.running,
    progress=options.watching,
)
def release(
    invoked: typer.Context,
    source: options.SourceArgument,
    output: Annotated[
        Path | None,
        options.output_option("DIR", "The directory to fill."),
    ] = None,
    types: options.Types = [],  # noqa: B006
    drop: Annotated[
        list[str],
        typer.Option(
            "--drop",
            metavar="TYPE",
            rich_help_panel=options.TYPES,
            autocompletion=values.complete_type,
            help="Take types out of a release, with their files; without --type, add none.",
        ),
    ] = [],  # noqa: B006
    recipe: options.Recipe = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="ORG/MODEL",
            rich_help_panel=options.HUB,
            help="The model on the Hub that this is made of.",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="ORG/NAME",
            rich_help_panel=options.HUB,
            help="Bring the release to the Hub.",
        ),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            rich_help_panel=options.HUB,
            help="The repository, if it is new.",
        ),
    ] = None,
    commit: Annotated[
        str,
        typer.Option(
            "--commit",
            metavar="each|all",
            rich_help_panel=options.HUB,
            help="Each GGUF file in a commit of its own (as usual), or all in one.",
        ),
    ] = "each",
    share: Annotated[
        str | None,
        typer.Option(
            "--share",
            metavar="N/OF",
            rich_help_panel=options.OUTPUT,
            help="Only a share of the files, such as 3/16; no card.",
        ),
    ] = None,
    join: Annotated[
        list[Path],
        typer.Option(
            "--join",
            metavar="DIR",
            rich_help_panel=options.OUTPUT,
            help="Where shares were made. May be repeated.",
        ),
    ] = [],  # noqa: B006
    discard: Annotated[
        bool,
        typer.Option(
            "--discard",
            rich_help_panel=options.HUB,
            help="Remove each file once it is on the Hub: a small disk will do.",
        ),
    ] = False,
    context: options.Context = None,
    imatrix: options.ImatrixOrAuto = None,
    calibration: options.Calibration = [],  # noqa: B006
    kl: Annotated[
        list[Path],
        typer.Option(
            "--kl",
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="A text: KL divergence and perplexity for the card (quantkit-gguf[llama]).",
        ),
    ] = [],  # noqa: B006
    allow_requantize: options.AllowRequantize = False,
    *,
    reading: Reading,
    splits: Splits,
    run: dict[str, Any],
    progress: TerminalProgress,
    as_json: options.Json = False,
) -> None:
    """Make a whole release: every type, the model card, the sums, a Modelfile, a manifest."""
    from quantkit import api
    from quantkit.errors import UsageError
    from quantkit.hub.push import HubTarget
    from quantkit.releases.release import parse_share

    if output is None:
        raise UsageError(f"say where: quantkit release {shlex.quote(source)} -o DIR")
    kinds = values.names(types)
    if types and not kinds:  # as of a variable that is not set
        raise UsageError("--types names no type; leave it out for the usual ones")
    commit = values.choice("--commit", commit, COMMITS)
    target = HubTarget(push, private, commit) if push else None
    with progress:
        made = api.release(
            source,
            output,
            kinds or None,
            drop=values.names(drop),
            recipe=recipe,
            push=target,
            discard=discard,
            base_model=base_model,
            kl=kl,
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
        progress.note(note)
    if as_json:
        print_json({**_summary(made), "seconds": round(progress.seconds, 3)})
        return
    if progress.quiet:
        return
    from quantkit.reporting.numbers import gigabytes

    for f in made.manifest.files:
        path, state = made.directory / f.name, made.states[f.name]
        say(f"{path}  {f.type}  {gigabytes(f.nbytes)}  {state}")
    state = "to be pushed" if run["dry_run"] else "pushed"
    for name in made.pushed:
        say(f"{push}/{name}  {state}")
    if not run["dry_run"]:
        say("\n" + "\n".join(_summary_lines(made, invoked.obj, progress.seconds, share, push)))


def _summary_lines(
    made: Release, given: list[str], seconds: float, share: str | None, pushed: str | None
) -> list[str]:
    """What there is now, and the command for the next step; `given` is the one that was given."""
    from quantkit.releases import card, previous
    from quantkit.reporting.numbers import gigabytes

    files, total = made.manifest.files, sum(f.nbytes for f in made.manifest.files)
    count = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    lines = [f"{count}, {gigabytes(total)}, in {clock(seconds)}"]
    repo = made.manifest.repo
    if share:
        return [*lines, "next, when all shares are made: the same with --join DIR for --share"]
    lines.append(f"card: {made.directory / previous.CARD}, page: {made.directory / previous.PAGE}")
    if pushed and repo:
        lines.append(f"next: llama-server -hf {repo}:{card.usual(made.rows).type}")
    else:
        words = [word for word in given if word != "--force"]  # nothing is to be made once more
        if (
            not repo and (kept := _without_drop(words)) != words
        ):  # there is nothing to drop any more
            named = {"-t", "--type", "--types"} & {word.partition("=")[0] for word in kept}
            words = [*kept, *([] if named else ["--types", ",".join(made.manifest.texts)])]
        command = shlex.join(["quantkit", *words, "--push", repo or "ORG/NAME"])
        lines.append(f"next: {command}")
    return lines


def _without_drop(words: list[str]) -> list[str]:
    """The words of a command without `--drop TYPE`."""
    before = ["", *words]
    return [
        word
        for word, last in zip(words, before, strict=False)
        if "--drop" not in (word.partition("=")[0], last)
    ]


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
    kept = (
        "quantkit",
        "llama_cpp",
        "name",
        "source",
        "architecture",
        "parameters",
        "experts",
        "made_from",
        "repo",
    )
    return {
        "directory": str(made.directory),
        **{key: data[key] for key in kept},
        "files": files,
        "errors": dict(made.manifest.errors),
        "scores": made.manifest.scores and made.manifest.scores.as_data(),
        "imatrix": data.get("imatrix"),
        "left": [f.name for f in made.manifest.left],
        "pushed": list(made.pushed),
    }
