"""The sums of a release's files that were edited: its manifest and SHA256SUMS follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.errors import CorruptFile
from quantkit.execution.stages import default_threads
from quantkit.execution.sums import FileSums
from quantkit.jobs import Run
from quantkit.planning.plan import PlannedFile
from quantkit.releases import manifest
from quantkit.releases.checksums import hash_files, tensors_of
from quantkit.releases.manifest import FileRecord, Manifest
from quantkit.storage.whole import write_text


def follow(files: Sequence[PlannedFile], run: Run) -> None:
    """Have the manifest beside files that were edited tell their sums, where it lists them: they
    are read once. What they were planned as stays on record, so that `release` keeps them."""
    directory = files[0].path.parent
    there = _manifest(directory)
    names = {record.name for record in there.records} if there else set()
    listed = {f.path: f for f in files if f.path.name in names}
    if there is None or not listed:
        return
    sums: dict[Path, FileSums] = {}
    hash_files(listed, run.threads or default_threads(), run.progress, sums.__setitem__)

    def updated(record: FileRecord) -> FileRecord:
        path = directory / record.name
        if path not in sums:
            return record
        tensors = tensors_of(listed[path], sums[path])
        size = path.stat().st_size
        return replace(record, nbytes=size, sha256=sums[path].whole, tensors=tensors)

    there = replace(
        there, files=tuple(map(updated, there.files)), left=tuple(map(updated, there.left))
    )
    write_text(directory / manifest.NAME, manifest.as_json(there))
    write_text(directory / manifest.CHECKSUMS, manifest.as_checksums(there))
    edited = ", ".join(sorted(path.name for path in listed))
    run.progress.note(
        f"{manifest.NAME} and {manifest.CHECKSUMS} have the new sums of {edited}; the card and the "
        "Modelfile tell of the source, which is as it was"
    )


def _manifest(directory: Path) -> Manifest | None:
    try:
        return manifest.read(directory / manifest.NAME)
    except (CorruptFile, OSError):  # of something else
        return None
