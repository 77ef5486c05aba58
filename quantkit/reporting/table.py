"""The table of a model card: what each file is, how large, and how much memory it takes to run."""

from __future__ import annotations

import csv
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError
from quantkit.gguf.container import Header, KeyValue
from quantkit.gguf.splits import split_siblings, unsplit_name
from quantkit.gguf.types import type_by_name
from quantkit.loading.kinds import kind_of
from quantkit.planning.plan import Output, Plan
from quantkit.recipes.file_types import RECIPES
from quantkit.recipes.sensitivity import made_from
from quantkit.reporting.llama_memory import UBATCH, MemoryNeed, Weights, memory
from quantkit.reporting.numbers import gigabytes
from quantkit.source.gguf_set import open_gguf_set
from quantkit.source.tensors import SourceTensor

if TYPE_CHECKING:
    from rich.table import Table as RichTable

CONTEXT = 4096  # tokens that people begin with; fewer if the model was trained for fewer


@dataclass(frozen=True)
class Row:
    """One model, in a file or a set of splits, that is there or only planned.

    `nominal_bits` are those of the type's name. What is needed is for a context of so many tokens:
    `max_ram_bytes` on the CPU; `mapped_ram_bytes` is what is resident at most where the file is
    mapped, pages that the system may take back included; `experts_on_cpu_...` for the rest on a
    GPU, None for models without experts. `fits_...`: whether there is room for it, None where
    nobody asked.
    """

    name: str
    type: str
    nominal_bits: int | None
    bits_per_weight: float
    tensor_bytes: int
    file_bytes: int
    files: int
    max_ram_bytes: int
    mapped_ram_bytes: int
    context: int
    use_case: str
    experts_on_cpu_ram_bytes: int | None = None
    experts_on_cpu_vram_bytes: int | None = None
    fits_ram: bool | None = None
    fits_disk: bool | None = None


def read_rows(
    paths: Sequence[Path],
    context: int | None = None,
    known_use: Callable[[Path], str | None] = lambda path: None,
) -> list[Row]:
    """A row for each GGUF file, and one for each set of splits of which any is given.

    `context` defaults to what the model was trained for, at most 4096 tokens; `known_use` is asked
    for a file's use case before its type is. Raises SourceError.
    """
    models = {(path.parent, unsplit_name(path.name)): path for path in reversed(paths)}
    rows = [(path, _read_row(path, context)) for path in reversed(models.values())]
    return [replace(row, use_case=known_use(path) or row.use_case) for path, row in rows]


def _read_row(path: Path, context: int | None) -> Row:
    header, tensors = open_gguf_set(path)
    files = split_siblings(path.name) if header.get("split.count", 0) > 1 else [path.name]
    weights = [Weights(t.name, t.shape, t.ggml.name) for t in tensors]
    size = sum((path.parent / name).stat().st_size for name in files)
    label = _type_of(header.get("general.file_type"), weights)
    metadata = _Metadata.of(header.kv, weights)
    return _row(_name(path.name, len(files)), label, size, len(files), metadata, weights, context)


def read_memory(path: Path, context: int) -> MemoryNeed:
    """What llama.cpp takes for a GGUF file, part by part. Raises SourceError."""
    return memory_of(*open_gguf_set(path))(context, UBATCH)


def memory_of(header: Header, tensors: Sequence[SourceTensor]) -> Callable[[int, int], MemoryNeed]:
    """A function of a context and of the tokens that are evaluated at once: what llama.cpp takes
    for a model then, part by part."""
    weights = [Weights(t.name, t.shape, t.ggml.name) for t in tensors]
    return partial(_Metadata.of(header.kv, weights).memory, weights)


def planned_rows(
    plan: Plan, context: int | None = None, kv: Sequence[KeyValue] | None = None
) -> list[Row]:
    """A row for each output of a plan, as `read_rows` will find it. `kv`: the model's metadata, if
    at hand; it is in the header of a whole plan's first file."""
    if kv is None:
        kv = plan.outputs[0].files[0].kv
    of_one = {name: t for output in plan.outputs[:1] for name, t in output.by_name.items()}
    metadata = _Metadata.of(kv, [Weights(t.name, t.shape, t.format) for t in of_one.values()])
    rows, before = [_planned_row(o, context, metadata) for o in plan.outputs], plan.quantized_before
    return [replace(row, use_case=made_from(before)) for row in rows] if before else rows


def _planned_row(output: Output, context: int | None, metadata: _Metadata) -> Row:
    weights = [Weights(t.name, t.shape, t.format) for t in output.by_name.values()]
    name = _name(output.files[0].path.name, len(output.files))
    return _row(name, output.type, output.size, len(output.files), metadata, weights, context)


def recorded_row(
    label: str,
    files: Sequence[tuple[str, int]],
    tensors: Sequence[Weights],
    kv: Sequence[KeyValue],
    context: int | None,
) -> Row:
    """The row of a model that may be elsewhere, from what is on record: its `files` by name and
    bytes, its tensors, and the model's metadata."""
    size, name = sum(nbytes for _, nbytes in files), _name(files[0][0], len(files))
    return _row(name, label, size, len(files), _Metadata.of(kv, tensors), tensors, context)


def _name(first: str, files: int) -> str:
    return first if files == 1 else f"{unsplit_name(first)} ({files} files)"


@dataclass(frozen=True)
class _Metadata:
    """What the rows of one model need of its metadata."""

    arch: str
    values: Mapping[str, Any]  # without the architecture's name
    pieces: int  # of the vocabulary
    use: str  # what llama.cpp does with it, if it is no model

    @classmethod
    def of(cls, kv: Sequence[KeyValue], tensors: Sequence[Weights]) -> _Metadata:
        by_key = {item.key: item for item in kv}
        arch = by_key["general.architecture"].value if "general.architecture" in by_key else ""
        prefix = f"{arch}."
        values = {
            key.removeprefix(prefix): item.value
            for key, item in by_key.items()
            if key.startswith(prefix)
        }
        lists = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
        pieces = sum(by_key[key].length for key in lists if key in by_key)
        return cls(arch, values, pieces, kind_of(kv, [t.name for t in tensors]).use)

    def memory(self, tensors: Sequence[Weights], context: int, batch: int = UBATCH) -> MemoryNeed:
        return memory(self.arch, self.values, tensors, context, self.pieces, batch)


def _row(
    name: str,
    label: str,
    size: int,
    files: int,
    metadata: _Metadata,
    tensors: Sequence[Weights],
    context: int | None,
) -> Row:
    context = context or min(metadata.values.get("context_length", CONTEXT), CONTEXT)
    need = metadata.memory(tensors, context)
    weights = sum(prod(t.shape) for t in tensors)
    nominal = re.search(r"\d+", label)
    ram, vram = need.experts_on_cpu or (None, None)
    return Row(
        name=name,
        type=label,
        nominal_bits=int(nominal[0]) if nominal else None,
        bits_per_weight=round(8 * need.weights / weights, 4) if weights else 0.0,
        tensor_bytes=need.weights,
        file_bytes=size,
        files=files,
        max_ram_bytes=need.required,
        mapped_ram_bytes=need.mapped,
        context=context,
        use_case=metadata.use
        or next((r.use_case for r in RECIPES if r.name == label.removesuffix("-moe")), ""),
        experts_on_cpu_ram_bytes=ram,
        experts_on_cpu_vram_bytes=vram,
    )


def _type_of(file_type: object, tensors: Sequence[Weights]) -> str:
    """What a file is called: the type that has its `file_type`, and of several the one whose `ends`
    its embedding and output are in; where there is none, the format of most of its weights."""
    ends = [t for t in tensors if t.role in ("token_embd", "output")]
    formats = {t.format for t in ends}
    named = [r for r in RECIPES if r.file_type == file_type]
    for recipe in named:
        if formats == {recipe.ends} and all(_fits(t, recipe.base) for t in ends):
            return recipe.name
    return named[0].name if named else _main_type(tensors)


def _fits(t: Weights, name: str) -> bool:
    """Whether the rows of a tensor divide into blocks of the format of that name."""
    return t.shape[-1] % type_by_name(name).block_size == 0


def _main_type(tensors: Sequence[Weights]) -> str:
    """The format that holds the most weights, for files whose label we do not know."""
    held: Counter[str] = Counter()
    for t in tensors:
        held[t.format] += prod(t.shape)
    return held.most_common(1)[0][0] if held else "?"


@dataclass(frozen=True)
class Table:
    """Rows of a report; a table in a notebook."""

    rows: tuple[Row, ...]

    def markdown(self) -> str:
        """The table as it goes into a model card."""
        return as_markdown(self.rows)

    def _repr_html_(self) -> str:
        return as_html(self.rows)


@dataclass(frozen=True)
class Column:
    """A column: its name in options, its heading, its text for a row, and what machines get
    instead: fields of `Row`."""

    name: str
    heading: str
    cell: Callable[[Row], str]
    fields: tuple[str, ...]


def _bits(row: Row) -> str:
    real = f"{row.bits_per_weight:.2f} bpw"
    return f"{row.nominal_bits} ({real})" if row.nominal_bits else real


def _size(row: Row) -> str:
    n = row.file_bytes
    return f"{gigabytes(n)} ({n / 2**30:.2f} GiB)" if n >= 1e9 else gigabytes(n)


def _experts_on_cpu(row: Row) -> str:
    ram, vram = row.experts_on_cpu_ram_bytes, row.experts_on_cpu_vram_bytes
    if ram is None or vram is None:
        return "-"
    return f"{gigabytes(ram)} RAM + {gigabytes(vram)} VRAM"


_YES = {True: "yes", False: "no", None: "-"}
COLUMNS = (
    Column("name", "Name", lambda row: row.name, ("name",)),
    Column("type", "Quant method", lambda row: row.type, ("type",)),
    Column("bits", "Bits", _bits, ("nominal_bits", "bits_per_weight")),
    Column("size", "Size", _size, ("file_bytes",)),
    Column("files", "Files", lambda row: str(row.files), ("files",)),
    Column("ram", "Max RAM required", lambda row: gigabytes(row.max_ram_bytes),
           ("max_ram_bytes", "context")),
    Column("mapped", "Resident when mapped", lambda row: gigabytes(row.mapped_ram_bytes),
           ("mapped_ram_bytes", "context")),
    Column("experts-on-cpu", "Experts on the CPU", _experts_on_cpu,
           ("experts_on_cpu_ram_bytes", "experts_on_cpu_vram_bytes", "context")),
    Column("fits-ram", "Fits in RAM", lambda row: _YES[row.fits_ram], ("fits_ram",)),
    Column("fits-disk", "Fits on disk", lambda row: _YES[row.fits_disk], ("fits_disk",)),
    Column("use", "Use case", lambda row: row.use_case, ("use_case",)),
)  # fmt: skip
USE_AT_LEAST = 16  # characters of a use case, which may wrap
# what a narrow terminal does without; the others are never cut
FIRST_TO_GO = ("use", "mapped", "experts-on-cpu", "files", "name", "bits", "fits-disk", "fits-ram",
               "ram", "size", "type")  # fmt: skip
FORMATS = ("table", "markdown", "json", "csv", "html")


def columns(names: Sequence[str]) -> list[Column]:
    """The columns of these names, in their order. Raises UsageError."""
    known = {column.name: column for column in COLUMNS}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown column {unknown[0]!r}; columns: {', '.join(known)}")
    return [known[name] for name in names]


CARD = columns(["name", "type", "bits", "size", "ram", "use"])


def _lines(rows: Sequence[Row], shown: Sequence[Column]) -> list[list[str]]:
    return [[column.cell(row) for column in shown] for row in rows]


def as_markdown(rows: Sequence[Row], shown: Sequence[Column] = CARD) -> str:
    """The table as it goes into a model card."""
    head = [column.heading for column in shown]
    lines = [head, ["---" for _ in head], *_lines(rows, shown)]
    return "\n".join(f"| {' | '.join(map(markdown_cell, cells))} |" for cells in lines)


def markdown_cell(text: str) -> str:
    """A cell in which nothing is markup; an underscore inside a word is none."""
    text = re.sub(r"([\\`*|<>\[\]~&])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(text.split())


def as_html(rows: Sequence[Row], shown: Sequence[Column] = CARD) -> str:
    """The table as an HTML element."""
    return html_table([column.heading for column in shown], _lines(rows, shown))


def html_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of any texts as an HTML element."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    out = [f"<thead>\n<tr>{head}</tr>\n</thead>", "<tbody>"]
    for cells in lines:
        out.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join(["<table>", *out, "</tbody>", "</table>"])


def as_json(rows: Sequence[Row], shown: Sequence[Column] = ()) -> list[dict[str, Any]]:
    """The rows for machines: every field, or those of the columns that are shown."""
    fields = dict.fromkeys(name for column in shown for name in column.fields)
    return [{k: v for k, v in asdict(row).items() if not fields or k in fields} for row in rows]


def as_csv(rows: Sequence[Row], shown: Sequence[Column] = ()) -> str:
    """The rows for spreadsheets, with a line of names: every field, or those of the columns."""
    values = as_json(rows, shown)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(values[0]) if values else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue().rstrip("\n")


def as_table(
    rows: Sequence[Row], shown: Sequence[Column] = CARD, width: int = 1000
) -> tuple[RichTable, list[Column]]:
    """The table for a terminal of so many characters, and the columns that it has no room for:
    numbers and types are never cut, columns go instead. What is left of a name wraps."""
    from rich.table import Column as Place
    from rich.table import Table as RichTable
    from rich.text import Text

    kept, left = list(shown), list[Column]()
    tall = _width(rows, kept) > width  # then headings take more lines
    while len(kept) > 1 and _width(rows, kept, tall) > width:
        first = min(kept, key=lambda column: FIRST_TO_GO.index(column.name))
        kept.remove(first)
        left.append(first)
    headings = [c.heading.replace(" ", "\n") if tall else c.heading for c in kept]
    table = RichTable(
        *(Place(h, no_wrap=c.name != "use") for h, c in zip(headings, kept, strict=True))
    )
    for cells in _lines(rows, kept):
        table.add_row(*map(Text, cells))
    return table, [column for column in shown if column in left]


def _width(rows: Sequence[Row], shown: Sequence[Column], tall: bool = False) -> int:
    """The characters that a drawn table takes at least; `tall`: headings have a word a line."""
    total = 1
    for column, *cells in zip(shown, *_lines(rows, shown), strict=True):
        heading = max(map(len, column.heading.split())) if tall else len(column.heading)
        wide = USE_AT_LEAST if column.name == "use" else max(map(len, cells), default=0)
        total += max(wide, heading) + 3
    return total
