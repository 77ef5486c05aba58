"""What earlier runs left in the directory of a release: whether it is this one's, and what of it
still holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.errors import OtherRelease, OutputError, OutputExists, SourceNotFound
from quantkit.execution.outputs import journal_path
from quantkit.hub import repository
from quantkit.progress import Progress
from quantkit.releases import manifest
from quantkit.releases.manifest import Manifest, Record
from quantkit.storage.os_files import fingerprint

CARD, PAGE, MODELFILE = "README.md", "index.html", "Modelfile"
PICTURES = ("size.svg", "bytes.svg", "error.svg")
BESIDE = (*PICTURES, PAGE, MODELFILE, manifest.SUMS, manifest.NAME, CARD)


@dataclass(frozen=True)
class Earlier:
    """What earlier runs left: the manifest of a whole release, the record of one in the making
    (None where there is none), and those made elsewhere, by their paths."""

    directory: Path = Path()
    whole: Manifest | None = None
    making: Manifest | None = None
    shares: Mapping[Path, Manifest] = field(default_factory=dict)

    @cached_property
    def records(self) -> dict[str, Record]:
        """The record of each file, by name."""
        parts = [*self.shares.values(), self.whole, self.making]
        found = [record for part in parts for record in _files(part)]
        return {record["name"]: record for record in found}

    @cached_property
    def begun(self) -> set[str]:
        """Files that were not there before the run that was cut short began to make them."""
        return {entry["name"] for entry in (self.making or {}).get("begun", [])}


@dataclass(frozen=True)
class Standing:
    """What becomes of each file that is planned: its record holds (`kept`), it is whole and only
    wants its sums (`unsummed`), or it is to be made, some because they are `damaged`."""

    kept: Mapping[Path, Record]
    unsummed: frozenset[Path]
    damaged: frozenset[Path]
    make: frozenset[Path]


def read(directory: Path, join: Sequence[Path] = (), anew: bool = False) -> Earlier:
    """What is in a directory (nothing, if all is to begin `anew`), and in those of shares, or below
    them.

    Raises CorruptFile, SourceNotFound.
    """
    shares: dict[Path, Manifest] = {}
    for place in join:
        names = manifest.NAME, manifest.partial_path(Path()).name
        found = {p: manifest.read(p) for name in names for p in sorted(place.rglob(name))}
        shares |= {p: m for p, m in found.items() if m is not None}
        if not found:
            raise SourceNotFound(f"{place}: no record of a share in it")
    if anew:
        return Earlier(directory, shares=shares)
    whole, making = directory / manifest.NAME, manifest.partial_path(directory)
    return Earlier(directory, manifest.read(whole), manifest.read(making), shares)


def _files(found: Manifest | None) -> list[Record]:
    """Every file that a manifest knows."""
    return [] if found is None else [*found["files"], *found.get("left", [])]


def check_place(source: Path | str, directory: Path, earlier: Earlier, force: bool) -> None:
    """Nothing that is not ours is written over. Raises OutputError, OutputExists."""
    if directory.suffix == ".gguf" or directory.is_file():
        raise OutputError(f"{directory}: a release is a directory; name one with -o")
    where = None if repository.is_remote(source) else Path(source).resolve()
    if where and directory.resolve() in (where, where.parent if where.is_file() else where):
        raise OutputError(f"{directory} is where the source lies; name another directory with -o")
    if force or earlier.whole or earlier.making or earlier.shares or not directory.is_dir():
        return
    alien = sorted(p.name for p in directory.iterdir() if p.name in BESIDE or p.suffix == ".gguf")
    if alien:
        raise OutputExists(
            f"{directory} holds {alien[0]}, which is not of a release; name another directory "
            "with -o, or overwrite with --force"
        )


def check_same(old: Earlier, this: Manifest, plans: Sequence[Mapping[str, str]]) -> None:
    """What is there belongs to the release that is asked for. Raises OtherRelease."""
    found = [(old.directory, old.whole), (old.directory, old.making)]
    found += [(path.parent, share) for path, share in old.shares.items()]
    for directory, before in found:
        if before is not None and (words := _difference(before, this, plans)):
            raise OtherRelease(
                f"{directory} holds a release {words}; name another directory, or begin anew with "
                "--force"
            )


def _difference(old: Manifest, this: Manifest, plans: Sequence[Mapping[str, str]]) -> str | None:
    if (old["name"], old.get("architecture")) != (this["name"], this["architecture"]):
        return f"of {old['name']}"
    made = old.get("made_from", {})
    if made.get("source") != this["made_from"]["source"]:
        return "of another source, or of this one before it changed"
    if made.get("importance") != this["made_from"]["importance"]:
        return "made with another importance matrix, or without one"
    before, now = _by_type([*_files(old), *old.get("begun", [])]), _by_type(plans)
    changed = [kind for kind in now if not before.get(kind, set()) <= now[kind]]
    return f"whose {changed[0]} was made with other options" if changed else None


def _by_type(files: Sequence[Mapping[str, Any]]) -> dict[str, set[tuple[str, Any]]]:
    found: dict[str, set[tuple[str, Any]]] = {}
    for entry in files:
        found.setdefault(entry["type"], set()).add((entry["name"], entry.get("plan")))
    return found


def there(paths: Iterable[Path]) -> set[Path]:
    """Those of the files that are whole."""
    return {p for p in paths if p.exists() and not journal_path(p).exists()}


def stand(paths: Sequence[Path], earlier: Earlier, threads: int, progress: Progress) -> Standing:
    """Hold the files against their records. Every byte is read, but of files that the run that was
    cut short had summed itself and nobody touched since."""
    whole = there(paths)
    recorded = {
        p: earlier.records[p.name] for p in paths if p in whole and p.name in earlier.records
    }
    doubtful = {p: r for p, r in recorded.items() if r.get("seen") != fingerprint(p)}
    damaged = manifest.wrong(doubtful, threads, progress) if doubtful else set()
    kept = {p: record for p, record in recorded.items() if p not in damaged}
    unsummed = frozenset(p for p in whole if p not in recorded and p.name in earlier.begun)
    return Standing(kept, unsummed, frozenset(damaged), frozenset(paths) - kept.keys() - unsummed)


def seen(path: Path, record: Record) -> Record:
    """A record that holds as long as the file's size and time are what they are now."""
    return {**record, "seen": fingerprint(path)}
