"""What earlier runs left in the directory of a release: whether it is the same release, and which
of its files are still right."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from quantkit.errors import (
    CorruptFile,
    OtherRelease,
    OutputError,
    OutputExists,
    SourceForbidden,
    SourceNotFound,
    UsageError,
)
from quantkit.execution.journal import other_version
from quantkit.execution.outputs import journal_path
from quantkit.gguf.splits import is_gguf, split_siblings, unsplit_name
from quantkit.hub.push import HubTarget
from quantkit.hub.repository import Address, read_small
from quantkit.jobs import check_name
from quantkit.planning.plan import Plan
from quantkit.progress import Progress
from quantkit.releases import checksums, manifest
from quantkit.releases.manifest import BegunFile, FileRecord, Manifest
from quantkit.source.location import Source
from quantkit.storage import os_files
from quantkit.storage.whole import remove

CARD, PAGE, MODELFILE = "README.md", "index.html", "Modelfile"
PICTURES = ("size.svg", "bytes.svg", "error.svg")
MATRIX = ".imatrix.gguf"  # ends the name of the importance matrix of a release
BESIDE = (*PICTURES, PAGE, MODELFILE, manifest.CHECKSUMS, manifest.NAME, CARD)
COMPARED = 3  # types, from which on pictures compare them


def beside(types: int) -> tuple[str, ...]:
    """What is written beside the weights of so many types."""
    return tuple(name for name in BESIDE if types >= COMPARED or name not in PICTURES)


@dataclass(frozen=True)
class Earlier:
    """What earlier runs left: the manifest of a whole release, the record of one in the making, the
    manifest that the repository of a push has (None where there is none), and records made
    elsewhere, by their paths."""

    directory: Path = Path()
    whole: Manifest | None = None
    making: Manifest | None = None
    shares: Mapping[Path, Manifest] = field(default_factory=dict)
    published: Manifest | None = None

    @property
    def _oldest_first(self) -> list[Manifest]:
        manifests = [self.published, *self.shares.values(), self.whole, self.making]
        return [m for m in manifests if m]

    @cached_property
    def records(self) -> dict[str, FileRecord]:
        """The record of each file, by name; the newest where there are several."""
        return {record.name: record for m in self._oldest_first for record in m.records}

    @cached_property
    def errors(self) -> dict[str, float]:
        """The mean error of each type that was measured."""
        return {kind: error for m in self._oldest_first for kind, error in m.errors.items()}

    @cached_property
    def begun(self) -> frozenset[str]:
        """Files that an interrupted run set out to make: they were not there before it."""
        return frozenset(f.name for f in self.making.begun) if self.making else frozenset()


@dataclass(frozen=True)
class FileCheck:
    """What becomes of each file that is planned. `kept`: it is what its record says; `unhashed`: it
    is whole, and only its checksums are missing; `make`: it has to be made, some because they are
    `damaged`."""

    kept: Mapping[Path, FileRecord]
    unhashed: frozenset[Path]
    damaged: frozenset[Path]
    make: frozenset[Path]


def read(directory: Path, join: Sequence[Path] = (), anew: bool = False) -> Earlier:
    """Read the records in a directory (of a release, not of one in the making, if all is to begin
    `anew`), and those of shares in or below the directories `join`.

    Raises CorruptFile (unless all is to begin anew), SourceNotFound.
    """
    shares: dict[Path, Manifest] = {}
    for place in join:
        names = manifest.NAME, manifest.partial_path(Path()).name
        manifests = {p: manifest.read(p) for name in names for p in sorted(place.rglob(name))}
        shares |= {p: m for p, m in manifests.items() if m is not None}
        if not manifests:
            raise SourceNotFound(f"{place}: no record of a share in it")
    whole, making = directory / manifest.NAME, manifest.partial_path(directory)
    if anew:
        with suppress(CorruptFile):
            return Earlier(directory, manifest.read(whole), shares=shares)
        return Earlier(directory, shares=shares)
    return Earlier(directory, manifest.read(whole), manifest.read(making), shares)


def read_published(target: HubTarget) -> Manifest | None:
    """The manifest that a repository on the Hub has; None if there is no repository that can be
    read, or no manifest of ours in it. Raises SourceUnreachable."""
    try:
        data = read_small(Address(target.repo), manifest.NAME)
        return None if data is None else manifest.parse(data, target.repo)
    except (SourceNotFound, SourceForbidden, CorruptFile):
        return None


def begun_anew(earlier: Earlier, this: Manifest, kinds: Collection[str]) -> Earlier:
    """What stays where the types that are asked for are made anew: the files of other types, as far
    as they are of the same release."""

    def others(m: Manifest | None) -> Manifest | None:
        if m is None or _difference(m, this):
            return None
        files, left = (tuple(r for r in rs if r.type not in kinds) for rs in (m.files, m.left))
        errors = {kind: error for kind, error in m.errors.items() if kind not in kinds}
        return replace(m, files=files, left=left, errors=errors)

    return replace(earlier, whole=others(earlier.whole), published=others(earlier.published))


def comparable(earlier: Earlier, this: Manifest, plans: Sequence[BegunFile]) -> Earlier:
    """The same without what a repository lists and this run would make otherwise."""
    public = earlier.published
    if public is None or _difference(public, this):
        return replace(earlier, published=None)
    same = {(plan.name, plan.plan) for plan in plans}
    changed = {plan.type for plan in plans} - {
        f.type for f in public.files if (f.name, f.plan) in same
    }
    files = tuple(f for f in public.files if f.type not in changed)
    errors = {kind: error for kind, error in public.errors.items() if kind not in changed}
    return replace(earlier, published=replace(public, files=files, errors=errors))


def check_drop(earlier: Earlier, drop: Iterable[str]) -> None:
    """Raises UsageError for a type to drop that is not in the release."""
    there = dict.fromkeys(record.type for record in earlier.records.values())
    for kind in drop:
        if kind not in there:
            known = ", ".join(there) or "nothing"
            raise UsageError(f"--drop {kind}: not in the release, which has {known}")


def other_files(
    earlier: Earlier, kinds: Collection[str], drop: Collection[str]
) -> tuple[dict[Path, FileRecord], tuple[str, ...]]:
    """The files on record of types that are not asked for now, in whole sets of splits, by their
    paths; and the names of those to `drop`."""
    sets: dict[str, dict[str, list[FileRecord]]] = {}  # by type; by name, the newest last
    for record in earlier.records.values():
        sets.setdefault(record.type, {}).setdefault(unsplit_name(record.name), []).append(record)
    dropped = [r.name for kind in drop for files in sets[kind].values() for r in files]
    others: dict[Path, FileRecord] = {}
    for kind, named in sets.items():
        *_, newest = named.values()
        if kind not in kinds and kind not in drop:
            of_set = set(split_siblings(newest[0].name))
            if of_set <= {r.name for r in newest}:
                others |= {earlier.directory / r.name: r for r in newest}
    return others, tuple(dropped)


def whole_sets(others: Mapping[Path, FileRecord], there: Collection[Path]) -> list[Path]:
    """Those of the files whose type is there with all its files."""
    lacking = {record.type for path, record in others.items() if path not in there}
    return [path for path, record in others.items() if record.type not in lacking]


def check_place(source: Source, directory: Path, earlier: Earlier, force: bool) -> None:
    """Nothing that is not ours is written over. Raises OutputError, OutputExists."""
    check_name(directory)
    if is_gguf(directory) or directory.is_file():
        raise OutputError(f"{directory}: a release is a directory; name one with -o")
    where = None if source.address else os_files.real(source.local())
    if where and os_files.real(directory) in (where, where.parent if where.is_file() else where):
        raise OutputError(f"{directory} is where the source lies; name another directory with -o")
    if force or earlier.whole or earlier.making or earlier.shares or not directory.is_dir():
        return
    alien = sorted(
        p.name
        for p in directory.iterdir()
        if (p.name in BESIDE or is_gguf(p)) and not p.name.endswith(MATRIX)
    )
    if alien:
        raise OutputExists(
            f"{directory} holds {alien[0]}, which is not of a release; name another directory "
            "with -o, or overwrite with --force"
        )


def check_same(earlier: Earlier, this: Manifest, plans: Sequence[BegunFile]) -> None:
    """Check that what is there belongs to the release that is asked for; and what a repository
    lists, unless all of it is asked for. Raises OtherRelease."""
    manifests = [(earlier.directory, earlier.whole), (earlier.directory, earlier.making)]
    manifests += [(path.parent, share) for path, share in earlier.shares.items()]
    for directory, before in manifests:
        if before is not None and (words := _difference(before, this, plans)):
            raise OtherRelease(
                f"{directory} holds a release {words}; name another directory, or begin anew with "
                "--force"
            )
    public, asked = earlier.published, {plan.type for plan in plans}
    if public and {f.type for f in public.files} - asked and (words := _difference(public, this)):
        raise OtherRelease(
            f"{this.repo} holds a release {words}; name another repository, or take its card away "
            "with --force"
        )


def _difference(before: Manifest, this: Manifest, plans: Sequence[BegunFile] = ()) -> str | None:
    """What tells two releases apart, in words; None if they are the same."""
    if (before.name, before.architecture) != (this.name, this.architecture):
        return f"of {before.name}"
    if before.made_from.source != this.made_from.source:
        return "of another source, or of this one before it changed"
    if before.made_from.importance != this.made_from.importance:
        return "made with another importance matrix, or without one"
    old, now = _by_type([*before.records, *before.begun]), _by_type(plans)
    for kind in now:
        versions = {other_version(plan) for _, plan in old.get(kind, ())} - {None}
        if versions:
            return (
                f"whose {kind} was made by {versions.pop()}, so that its options cannot be "
                "compared with these"
            )
    changed = [kind for kind in now if not old.get(kind, set()) <= now[kind]]
    if changed:
        return f"whose {changed[0]} was made with other options"
    models = before.made_from.model, this.made_from.model
    if all(models) and models[0] != models[1]:
        return "of this model read with other options, such as --experts-used or --keep-experts"
    return None


def _by_type(files: Iterable[FileRecord | BegunFile]) -> dict[str, set[tuple[str, str]]]:
    """The name and the plan's digest of each file, by type."""
    by_type: dict[str, set[tuple[str, str]]] = {}
    for f in files:
        by_type.setdefault(f.type, set()).add((f.name, f.plan))
    return by_type


def whole_files(paths: Iterable[Path]) -> set[Path]:
    """Those of the files that are there and finished."""
    return {p for p in paths if p.exists() and not journal_path(p).exists()}


def forget_unbegun(record: Path, plans: Iterable[Plan]) -> None:
    """Remove the record of a release of which no file is there that a run could go on with."""
    files = [f.path for plan in plans for f in plan.files]
    if not any(path.exists() or journal_path(path).exists() for path in files):
        remove(record)


def check_files(
    paths: Sequence[Path], earlier: Earlier, threads: int, progress: Progress
) -> FileCheck:
    """Check the planned files against their records. Every file is read, except those that an
    interrupted run hashed itself and that did not change since."""
    whole = whole_files(paths)
    recorded = {
        p: earlier.records[p.name] for p in paths if p in whole and p.name in earlier.records
    }
    doubtful = {
        p: record for p, record in recorded.items() if record.seen != os_files.fingerprint(p)
    }
    damaged = checksums.mismatches(doubtful, threads, progress) if doubtful else frozenset[Path]()
    kept = {p: record for p, record in recorded.items() if p not in damaged}
    unhashed = frozenset(p for p in whole if p not in recorded and p.name in earlier.begun)
    return FileCheck(kept, unhashed, damaged, frozenset(paths) - kept.keys() - unhashed)


def stat_record(path: Path, record: FileRecord) -> FileRecord:
    """The record with the file's size and time: it holds until they change."""
    return replace(record, seen=os_files.fingerprint(path))
