"""The command that releases: release."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands.console import Progress
from quantkit.commands.options import (
    Context,
    DryRun,
    ExpertsUsed,
    FirstEmpty,
    Force,
    Fp8AsQ8,
    FuseGateUp,
    FuseQkv,
    Json,
    KeepExperts,
    MaxSize,
    MaxTensors,
    Memory,
    Mtp,
    NoMtp,
    Pre,
    Recipe,
    Threads,
    imatrix_of,
    reading_of,
    run_of,
    splits_of,
)

if TYPE_CHECKING:
    from quantkit.releases.release import Release


class Commit(str, Enum):
    """How a push is divided into commits."""

    each = "each"
    all = "all"


def release(
    source: Annotated[str, typer.Argument(help="A checkpoint directory, a GGUF file, or hf://...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to fill.")],
    types: Annotated[
        str | None,
        typer.Option("--types", help="Such as Q4_K_M,Q8_0 (default: eight, from Q2_K to Q8_0)."),
    ] = None,
    recipe: Recipe = None,
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
    context: Context = None,
    imatrix: Annotated[
        str | None, typer.Option("--imatrix", help="An importance matrix (GGUF or .dat).")
    ] = None,
    pre: Pre = None,
    experts_used: ExpertsUsed = None,
    keep_experts: KeepExperts = None,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
    fuse_qkv: FuseQkv = False,
    fuse_gate_up_exps: FuseGateUp = False,
    fp8_as_q8: Fp8AsQ8 = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize what is quantized already.")
    ] = False,
    split_max_size: MaxSize = None,
    split_max_tensors: MaxTensors = 0,
    no_tensor_first_split: FirstEmpty = False,
    dry_run: DryRun = False,
    threads: Threads = None,
    memory: Memory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a whole release: every type, the model card, the sums, a Modelfile, a manifest."""
    from quantkit.hub.push import HubTarget
    from quantkit.planning.build import Request
    from quantkit.recipes.file_types import of_mixture
    from quantkit.releases import release as jobs
    from quantkit.releases import small_disk

    splits = splits_of(split_max_size, split_max_tensors, no_tensor_first_split)
    reading = reading_of(
        pre, experts_used, keep_experts, mtp, no_mtp, fuse_qkv, fuse_gate_up_exps, fp8_as_q8
    )
    if discard and (push is None or share or join):
        raise typer.BadParameter("--discard goes with --push, and without --share and --join")
    target = HubTarget(push, private, commit.value) if push else None
    named = [name.strip() for name in types.split(",")] if types else None
    with Progress() as progress:
        options: dict[str, Any] = {
            "types": of_mixture(named, recipe) if named else _default(recipe),
            "request": Request(splits=splits, allow_requantize=allow_requantize),
            "imatrix": imatrix_of(imatrix, [], []),
            "reading": reading,
            "context": context,
            "base_model": base_model,
            "run": run_of(force, dry_run, threads, memory, progress),
            "watch": progress.bar,
        }
        if target and discard:
            made = small_disk.release_in_parts(source, output, target=target, **options)
        else:
            which = jobs.parse_share(share) if share else None
            made = jobs.release(source, output, target=target, share=which, join=join, **options)
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps({**_summary(made), "seconds": round(progress.seconds, 3)}, indent=2))
        return
    from quantkit.reporting.numbers import gigabytes

    for f in made.manifest["files"]:
        path = made.directory / f["name"]
        typer.echo(f"{path}  {f['type']}  {gigabytes(f['bytes'])}  {made.states[f['name']]}")
    for name in made.pushed:
        typer.echo(f"{push}/{name}  {'to be pushed' if dry_run else 'pushed'}")


def _default(recipe: str | None) -> list[str]:
    """The types of a release in a `--recipe`, those that it is not for as they always are."""
    from quantkit.errors import RecipeError
    from quantkit.recipes.file_types import RELEASE_TYPES, find_recipe, of_mixture

    found = []
    for plain, name in zip(RELEASE_TYPES, of_mixture(RELEASE_TYPES, recipe), strict=True):
        try:
            found.append(find_recipe(name).name)
        except RecipeError:
            found.append(plain)
    return found


def _summary(made: Release) -> dict[str, Any]:
    """The manifest without its tensors, and what was done."""
    files = [
        {**{k: v for k, v in f.items() if k in ("name", "type", "bytes", "sha256")},
         "state": made.states[f["name"]]}
        for f in made.manifest["files"]
    ]  # fmt: skip
    kept = ("quantkit", "name", "source", "architecture", "parameters", "experts", "repo")
    return {
        "directory": str(made.directory),
        **{key: made.manifest[key] for key in kept},
        "files": files,
        "left": [f["name"] for f in made.manifest.get("left", [])],
        "pushed": list(made.pushed),
    }
