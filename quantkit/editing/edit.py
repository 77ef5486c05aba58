"""A GGUF file with other metadata: its tensors are copied by the system, or stay where they are."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from quantkit.editing import in_place as header_in_place
from quantkit.editing.keys import Changes, edited
from quantkit.editing.released import follow
from quantkit.errors import CorruptFile, OutputError, SourceNotFound, UnsupportedSource, UsageError
from quantkit.gguf.container import read_header
from quantkit.gguf.splits import size_in_bytes, split_siblings, unsplit_name
from quantkit.jobs import Job, Run, carry_out, check_name, names_file
from quantkit.model.model import Model
from quantkit.model.open import open_gguf
from quantkit.planning.build import only, plan_copy
from quantkit.planning.plan import Plan
from quantkit.progress import SILENT, Progress
from quantkit.reporting.written import Written
from quantkit.source.location import Source, SourceLike
from quantkit.storage import os_files
from quantkit.tokenizer.chat_template import LONGEST


def edit(
    file: SourceLike,
    output: str | os.PathLike[str] | None = None,
    *,
    set_kv: Sequence[str] = (),
    chat_template: str | os.PathLike[str] | None = None,
    remove: Sequence[str] = (),
    in_place: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Write a GGUF file (or the set of splits that it is one of) again with other metadata, its
    tensors as they are.

    `set_kv` are texts KEY=VALUE (of the type that the key has) or KEY=TYPE:VALUE, `remove` keys,
    `chat_template` a file of text in UTF-8. `output` is a `.gguf` path or a directory; `in_place`
    writes the header over the file's own, where it takes as many bytes. Raises QuantkitError.
    """
    template = None if chat_template is None else read_template(Path(chat_template))
    changes = Changes(tuple(set_kv), tuple(remove), template)
    if not changes:
        raise UsageError(
            "say what to change: --set KEY=VALUE, --chat-template FILE or --remove KEY"
        )
    source = Source.parse(file)
    if in_place == (output is not None):
        both = "-o and --in-place exclude each other"
        where = f"say where to write: quantkit edit {shlex.quote(str(source))} ... -o OUT.gguf"
        raise UsageError(both if in_place else f"{where}, or --in-place")
    run = Run(force, dry_run, threads, size_in_bytes(memory), progress=progress)
    if source.address is None:
        _undo_interrupted(_first(source.local()), run)
    if in_place:
        return Written(_in_place(source, changes, run))
    return Written(_copied(source, changes, Path(output or "."), run))


def read_template(path: Path) -> str:
    """The text of a chat template, its lines ended by "\\n" as `convert` writes them.

    Raises SourceNotFound, UnsupportedSource, CorruptFile.
    """
    try:
        with open(os_files.open_read(path), "rb") as f:
            data = f.read(LONGEST + 1)
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: no such file") from None
    except OSError as e:
        raise UnsupportedSource(f"{path}: cannot be read ({e.strerror})") from None
    if len(data) > LONGEST:
        raise UnsupportedSource(f"{path}: more than {LONGEST:,} bytes; no chat template is so long")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise CorruptFile(f"{path}: a chat template in UTF-8 is expected ({e})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _copied(source: Source, changes: Changes, output: Path, run: Run) -> Plan:
    check_name(output)
    if not names_file(output):
        output = output / f"{unsplit_name(Path(str(source)).name)}.gguf"
    model, plan = _planned(source, changes, output)
    carry_out(Job(model, plan, {}), run)
    if not run.dry:
        follow(plan.files, run)
    return plan


def _in_place(source: Source, changes: Changes, run: Run) -> Plan:
    if source.address is not None:
        raise UsageError(f"{source} is on the Hub; --in-place is for a file here, -o for a new one")
    path = _first(source.local())
    seen = os_files.fingerprint(path)
    model, plan = _planned(source, changes, path.with_name(f"{unsplit_name(path.name)}.gguf"))
    _check_room(path, model, plan)
    for note in model.notes:
        run.progress.tell(note)
    if not run.dry:
        with header_in_place.opened(path) as fd:
            if os_files.fingerprint(path) != seen:
                raise OutputError(f"{path} was changed meanwhile; run it again")
            header_in_place.write_header(path, fd, plan.files[0].header)
        follow(plan.files[:1], run)
    return only(plan, [1])  # the one file that is another now


def _first(path: Path) -> Path:
    """The file that holds the metadata: the first of the set that a file is one of."""
    first = path.with_name(split_siblings(path.name)[0])
    return first if first.exists() else path


def _planned(source: Source, changes: Changes, output: Path) -> tuple[Model, Plan]:
    """The model with its changes, and the files that it will be: as many as it is. Raises
    SourceError, RecipeError, NotLoadable."""
    there = open_gguf(source)
    model = edited(there, changes)
    plan = plan_copy(model, output, keep_split=True)
    count = next((int(i.value) for i in there.kv if i.key == "split.count"), 1)
    if len(plan.files) != max(count, 1):
        merge = f"quantkit merge {shlex.quote(str(source))} -o WHOLE.gguf"
        raise UnsupportedSource(
            f"{source} is one of {count} splits, whose tensors are not written in this order any "
            f"more; join them, and edit the file of all: {merge}"
        )
    return model, plan


def _check_room(path: Path, model: Model, plan: Plan) -> None:
    """The file that is planned differs from the one that is there in its header alone. Raises
    OutputError."""
    f = plan.files[0]
    there = min(read_header(path).data_offset, path.stat().st_size)  # no padding before no tensors
    if f.header_size != there:
        raise OutputError(
            f"{path}: the new header takes {f.header_size} bytes, and there is room for just "
            f"{there}; write another file with -o"
        )
    of_file = [t for t in model.sources.values() if t.path == path]
    lie = {t.name: (t.offset, t.shape, t.ggml.name) for t in of_file}
    planned = {t.name: (t.offset, t.shape, t.format) for t in f.tensors}
    end = max((t.offset + t.nbytes for t in f.tensors), default=there)
    if lie != planned or path.stat().st_size not in (f.size, end):
        raise OutputError(
            f"{path}: its tensors do not lie as they are written today; write another file with -o"
        )


def _undo_interrupted(path: Path, run: Run) -> None:
    """What an edit left undone in the file is undone before it is read. Raises OutputError."""
    if not header_in_place.is_left(path):
        return
    if run.dry:
        raise OutputError(f"{path}: an edit of it was interrupted; without --dry-run it is undone")
    with header_in_place.opened(path):
        run.progress.note(f"{path}: an edit of it was interrupted; its header is the old one again")
