"""The page of a release: one HTML file that shows it in pictures and tables, and loads nothing.

`templates/page.html` is how it looks; what goes into it is made here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from quantkit.charts import plots, svg
from quantkit.charts.plots import Point
from quantkit.charts.svg import Axis
from quantkit.gguf import tensor_names
from quantkit.gguf.splits import unsplit_name
from quantkit.model import provenance
from quantkit.releases import card
from quantkit.releases.manifest import FileRecord, Manifest
from quantkit.releases.previous import COMPARED
from quantkit.releases.run_commands import download, run_commands
from quantkit.reporting.inspection import Description
from quantkit.reporting.numbers import billions, gigabytes
from quantkit.reporting.table import Row

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTHS = {"wide": 860, "narrow": 342}  # pixels; a page has each picture in both
# memories that machines are sold with, in GB; nine of them become columns
MEMORIES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


class Draw(Protocol):
    """A picture in any width, in pixels."""

    def __call__(self, *, width: int) -> str: ...


@dataclass(frozen=True)
class Figure:
    """A picture, its title and its caption."""

    title: str
    caption: str
    draw: Draw


@dataclass(frozen=True)
class Entry:
    """One model of the release: its row, and its files."""

    row: Row
    files: tuple[FileRecord, ...]

    @property
    def layers(self) -> Counter[tuple[int | None, str]]:
        """Bytes by layer (None outside of them) and part."""
        held: Counter[tuple[int | None, str]] = Counter()
        for file in self.files:
            for tensor in file.tensors:
                name = tensor_names.parse(tensor.name)
                held[name.bid, tensor_names.part(name)] += tensor.nbytes
        return held

    @property
    def parts(self) -> Counter[str]:
        """Bytes by part."""
        held: Counter[str] = Counter()
        for (_, part), size in self.layers.items():
            held[part] += size
        return held

    def fits(self, memory: int) -> str:
        """`whole` if it runs in so many bytes of main memory, `experts` if its experts have room
        there and the rest needs a GPU, else nothing."""
        experts = self.row.experts_on_cpu_ram_bytes
        if self.row.max_ram_bytes <= memory:
            return "whole"
        return "experts" if experts is not None and experts <= memory else ""


def render(
    manifest: Manifest,
    rows: Sequence[Row],
    description: Description,
    values: Mapping[str, Any] = MappingProxyType({}),
    more: Sequence[Figure] = (),
    encoders: Sequence[Row] = (),
) -> str:
    """The page as HTML, to be written beside the files that it links to.

    `rows` are those of the manifest's files, `values` is the model's metadata, `more` are pictures
    of what was measured, `encoders` the rows of the encoders beside the text.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    entries = _entries(manifest, rows)
    listed = [*entries, *_entries(manifest, encoders)]
    environment = Environment(
        loader=PackageLoader("quantkit.releases"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"gigabytes": gigabytes, "url": lambda name: "./" + quote(name)}

    def drawn(figure: Figure) -> dict[str, Markup]:
        return {
            name: Markup(svg.inline(figure.draw(width=width))) for name, width in WIDTHS.items()
        }

    usual, merge = card.usual(rows), description.merge
    memories = [] if card.is_tiny(rows) else _memories(rows)
    matter = card.front_matter(manifest, description, values)
    purpose = card.purpose_in(manifest, values)
    licence = matter.get("license_name") or matter.get("license")
    return environment.get_template("page.html").render(
        manifest=manifest,
        before=manifest.made_from.quantized,
        entries=entries,
        usual=usual,
        numbers=_numbers(manifest, description),
        best={n: card.best_within(rows, n * 10**9) for n in memories},
        figures=[*(_figures(entries) if len(entries) >= COMPARED else ()), *more],
        layers=[(entry.row, _by_layer(entry)) for entry in entries],
        drawn=drawn,
        mixture=any(row.experts_on_cpu_ram_bytes is not None for row in rows),
        base=_model(merge.base) if merge else None,
        experts=[_model(name) for name in merge.experts] if merge else [],
        sources=list(map(_model, matter.get("base_model", []))),
        licence=(licence, _web(matter.get("license_link"))),
        tool=card.TOOL,
        listed=listed,
        downloads=[download(manifest, entry.row) for entry in listed],
        commands=run_commands(
            manifest, usual, "tokenizer.chat_template" in values, purpose, encoders
        ),
        colours=Markup(svg.COLOURS),
    )


def figures(manifest: Manifest, rows: Sequence[Row]) -> list[Figure]:
    """The page's pictures of the whole release, for a card to show too; none if there is little
    to compare."""
    return _figures(_entries(manifest, rows)) if len(rows) >= COMPARED else []


def error_by_size(
    rows: Sequence[Row], errors: Mapping[str, float], quantized_before: Sequence[str] = ()
) -> Figure:
    """Size against measured error, given by type: for `render`'s `more`, and for a card."""
    unit, one = _unit(row.file_bytes for row in rows)
    points = [Point(row.type, row.file_bytes / one, errors[row.type]) for row in rows]
    x, y = Axis("Size of the file", _amount(unit)), Axis("Relative error", _percent, log=True)

    def draw(*, width: int) -> str:
        return plots.scatter("Size against error", points, x, y, front=True, width=width)

    caption = "Down and to the left is better. The line joins the files that no other beats."
    if quantized_before:
        caption += f" Errors are relative to the source's {', '.join(quantized_before)}."
    return Figure("Size against error", caption, draw)


def _entries(manifest: Manifest, rows: Sequence[Row]) -> list[Entry]:
    """The models, smallest first."""
    files: dict[str, list[FileRecord]] = {}
    for file in manifest.files:
        files.setdefault(unsplit_name(file.name), []).append(file)
    return [
        Entry(row, tuple(files[_stem(row)])) for row in sorted(rows, key=lambda row: row.file_bytes)
    ]


def _stem(row: Row) -> str:
    return row.name.removesuffix(f" ({row.files} files)").removesuffix(".gguf")


def _numbers(manifest: Manifest, description: Description) -> list[tuple[str, str]]:
    """The numbers at the top, each with its name."""
    count, experts = manifest.parameters, manifest.experts
    numbers = [("Parameters", billions(count.total))]
    if experts:
        numbers.append(("Active for a token", billions(count.active)))
        numbers.append(("Experts", f"{experts.count}, {experts.used} used"))
    for name, n in (("Layers", description.layers), ("Tokens of context", description.context)):
        if n:
            numbers.append((name, f"{n:,}"))
    return [*numbers, ("Architecture", manifest.architecture)]


def _memories(rows: Sequence[Row]) -> Sequence[int]:
    """The sizes of memory worth a column, in GB: those up to the one that has room for all."""
    most = max(row.max_ram_bytes for row in rows)
    end = next((i for i, n in enumerate(MEMORIES, 1) if n * 10**9 >= most), len(MEMORIES))
    return MEMORIES[max(end, 9) - 9 : max(end, 9)]


def _model(name: str) -> tuple[str, str | None]:
    """The name of a model that another was merged from, and its address if it is on the Hub."""
    hub = None if name.startswith(".") else provenance.hub_name(name)
    return (
        (hub, provenance.HUB + hub) if hub else (re.split(r"[\\/]", name.rstrip("\\/"))[-1], None)
    )


def _web(address: str | None) -> str | None:
    """An address of the web, as it is; None if it is another, which a page does not lead to."""
    return address if address and re.match(r"https?://", address) else None


def _unit(values: Iterable[float]) -> tuple[str, float]:
    largest = max(values, default=0)
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
    return next(((name, size) for size, name in units if largest >= size), ("kB", 1e3))


def _amount(unit: str) -> Callable[[float], str]:
    return lambda value: f"{value:,.2f}".rstrip("0").rstrip(".") + f" {unit}"


def _percent(value: float) -> str:
    return f"{100 * value:.2g}%"


def _figures(entries: Sequence[Entry]) -> list[Figure]:
    """Size against bits, and the share of each part in every file."""
    unit, one = _unit(entry.row.file_bytes for entry in entries)
    axis = Axis("Size of the file", _amount(unit))
    points = [
        Point(e.row.type, e.row.file_bytes / one, round(e.row.bits_per_weight, 2)) for e in entries
    ]

    def size(*, width: int) -> str:
        return plots.scatter(
            "Size against bits per weight", points, axis, Axis("Bits per weight"), width=width
        )

    held = [entry.parts for entry in entries]
    types = [entry.row.type for entry in entries]
    series = {part: [h[part] / one for h in held] for part in _present(held)}

    def parts(*, width: int) -> str:
        title, size_of = (
            "Bytes of each file by what they are for",
            Axis("", ("{:.2f} " + unit).format),
        )
        return plots.stacked(title, types, series, size_of, share=True, width=width)

    return [
        Figure(
            "Size against bits",
            "The real bits: those of all tensors, divided by all weights.",
            size,
        ),
        Figure("Where the bytes are", _largest(held), parts),
    ]


def _present(held: Iterable[Counter[str]]) -> list[str]:
    """The parts that the model has, in one order, so that a colour means the same everywhere."""
    names = {part for h in held for part in h if h[part]}
    return [part for part in tensor_names.PARTS if part in names]


def _largest(held: Sequence[Counter[str]]) -> str:
    """The part that holds most of the bytes, and its share, from file to file."""
    whole = [sum(h.values()) for h in held]
    part = sum(held, Counter()).most_common(1)[0][0]
    shares = [round(100 * h[part] / n) for h, n in zip(held, whole, strict=True)]
    low, high = min(shares), max(shares)
    share = f"{low}%" if low == high else f"{low} to {high}%"
    return f"{part.capitalize()}: {share} of the bytes."


def _by_layer(entry: Entry) -> Figure:
    held = entry.layers
    bids = sorted({bid for bid, _ in held if bid is not None})
    totals = Counter[int | None]()
    for (bid, _), size in held.items():
        totals[bid] += size
    unit, one = _unit(totals[bid] for bid in bids)
    series = {part: [held[bid, part] / one for bid in bids] for part in _present([entry.parts])}

    def draw(*, width: int) -> str:
        return plots.columns(
            f"Bytes of {entry.row.type} by layer",
            list(map(str, bids)),
            series,
            Axis("Bytes of a layer", _amount(unit)),
            below="layer",
            width=width,
        )

    outside = f"Outside the layers: {gigabytes(totals[None])}." if totals[None] else ""
    return Figure(entry.row.type, outside, draw)
