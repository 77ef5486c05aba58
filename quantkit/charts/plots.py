"""Pictures for model cards and pages: SVG, drawn by plain functions from plain data.

Each function returns a whole document. It brings its own ground and colours, light or dark as the
reader's system is set, so that it can be read in a Markdown card whatever the card's theme;
`drawing.inline` leaves both out for a page that has them. Tooltips and the description say in words
what is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.charts import svg as pen
from quantkit.charts.svg import Axis, Box


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot, small without a label. Those of one series share a colour and a
    shape."""

    label: str
    x: float
    y: float
    series: str = ""


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats (x and y both as small), by x."""
    best: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x, p.y)):
        if not best or p.y < best[-1].y:
            best.append(p)
    return best


def scatter(
    title: str, points: Sequence[Point], x: Axis, y: Axis, *, front: bool = False, width: int = 720
) -> str:
    """Labelled points; with `front`, the line of those that no other beats (less is better). Points
    at 0 or below are left out where an axis is logarithmic."""
    points = [p for p in points if (p.x > 0 or not x.log) and (p.y > 0 or not y.log)]
    series = list(dict.fromkeys(p.series for p in points))
    head, top = pen.legend(dict(enumerate(series)), width, marks=True)
    height = top + max(260, width * 9 // 20)
    x_ends, x_ticks = pen.domain([p.x for p in points], x, width // 110)
    y_ends, y_ticks = pen.domain([p.y for p in points], y, 6)
    left = 12 + max((pen.text_width(y.show(t)) for t in y_ticks), default=0)
    edges = [pen.text_width(x.show(x_ticks[i])) / 2 for i in (0, -1)]  # half of them hangs over
    frame = Box(max(left, edges[0]), top + 24, width - max(edges[1], 12), height - 44)

    def place(p: Point) -> tuple[float, float]:
        return (
            frame.left + pen.along(p.x, x_ends, x.log) * (frame.right - frame.left),
            frame.bottom - pen.along(p.y, y_ends, y.log) * (frame.bottom - frame.top),
        )

    body = [head, pen.words(y.label, 0, top + 10, "soft")]
    for t in y_ticks:
        v = frame.bottom - pen.along(t, y_ends, y.log) * (frame.bottom - frame.top)
        body.append(
            f'<path class="line" d="M{pen.px(frame.left)} {pen.px(v)}H{pen.px(frame.right)}"/>'
        )
        body.append(pen.words(y.show(t), frame.left - 8, v + 4, "soft", "end"))
    middles = [
        frame.left + pen.along(t, x_ends, x.log) * (frame.right - frame.left) for t in x_ticks
    ]
    body += pen.sparse(
        [x.show(t) for t in x_ticks], middles, frame.bottom + 18, middles[1] - middles[0]
    )
    body.append(pen.words(x.label, frame.right, frame.bottom + 36, "soft", "end"))
    if front:
        line = "L".join(f"{pen.px(u)} {pen.px(v)}" for u, v in map(place, frontier(points)))
        body.append(f'<path class="front" stroke-width="2" d="M{line}"/>')
    places = [place(p) for p in points]
    sizes = [6 if p.label else 3 for p in points]
    marks = [Box(u - s, v - s, u + s, v + s) for (u, v), s in zip(places, sizes, strict=True)]
    room = Box(0, top, width, frame.bottom)
    shapes, reaches, labels = [], [], []
    for p, (u, v), spot in zip(points, places, label_places(points, marks, room), strict=True):
        shapes.append(pen.shape(series.index(p.series), u, v, _said(p, x, y), small=not p.label))
        if spot:
            side = "end" if spot.right < u else "" if spot.left > u else "middle"
            at = {"end": spot.right, "": spot.left}.get(side, (spot.left + spot.right) / 2)
            labels.append(pen.words(p.label, at, spot.bottom - 4, anchor=side))
            foot = spot.bottom if spot.bottom < v else spot.top
            if abs(foot - v) > 12:
                line = f"M{pen.px(u)} {pen.px(v)}L{pen.px(max(u, spot.left))} {pen.px(foot)}"
                reaches.append(f'<path class="reach" d="{line}"/>')
    body += [*reaches, *shapes, *labels]
    desc = [_said(p, x, y) for p in points if p.label]
    return pen.document(title, desc, width, height, body)


def stacked(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    axis: Axis,
    *,
    share: bool = False,
    width: int = 720,
) -> str:
    """A bar across for each name, cut into series, with its sum beside it; with `share`, all bars
    are of one length."""
    head, top = pen.legend(_drawn(series), width)
    totals = [sum(values) for values in zip(*series.values(), strict=True)]
    brief = [pen.short(name, width * 0.36) for name in names]
    left = 10 + max(map(pen.text_width, brief), default=0)
    end = width - 14 - max((pen.text_width(axis.show(t)) for t in totals), default=0)
    body, pitch, bar = [head], 30, 20
    for row, (name, total) in enumerate(zip(names, totals, strict=True)):
        y = top + row * pitch + 6
        body.append(pen.words(brief[row], left - 10, y + 14, anchor="end"))
        u = left
        scale = (end - left) / ((total if share else max(totals)) or 1)
        for i, (part, values) in enumerate(series.items()):
            wide = values[row] * scale
            percent = f"{100 * values[row] / (total or 1):.0f}%"
            about = f"{name}, {part}: {axis.show(values[row])}" if part else name
            about += f" ({percent})" if len(series) > 1 else ""
            if wide > 0:
                seen = max(wide - 1, 0.5)  # a gap tells neighbours apart
                body.append(pen.rect(f"c{i % pen.SERIES}", u, y, seen, bar, about))
            u += wide
        body.append(pen.words(axis.show(total), u + 8, y + 14, "soft"))
    desc = [
        f"{name}: " + ", ".join(f"{part} {axis.show(v[row])}".strip() for part, v in series.items())
        for row, name in enumerate(names)
    ]
    return pen.document(title, desc, width, top + pitch * len(names) + 4, body)


def bars(title: str, values: Mapping[str, float], axis: Axis, *, width: int = 720) -> str:
    """A bar across for each name, with its value beside it."""
    return stacked(title, list(values), {"": list(values.values())}, axis, width=width)


def columns(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    axis: Axis,
    *,
    below: str = "",
    width: int = 720,
) -> str:
    """A bar upwards for each name, cut into series: many narrow ones, such as layers.

    `below` says what the names are. Names are written where there is room for them.
    """
    head, top = pen.legend(_drawn(series), width)
    totals = [sum(values) for values in zip(*series.values(), strict=True)]
    ends, ticks = pen.domain([0.0, *totals], axis, 4)
    left = 12 + max((pen.text_width(axis.show(t)) for t in ticks), default=0)
    height = top + max(200, width // 3)
    frame = Box(left, top + 24, width - 8, height - 40)
    scale = (frame.bottom - frame.top) / ((ends[1] - ends[0]) or 1)
    pitch = (frame.right - frame.left) / (len(names) or 1)
    wide = min(pitch - min(2, pitch / 4), 56)
    body = [head, pen.words(axis.label, 0, top + 10, "soft")]
    for t in ticks:
        v = frame.bottom - t * scale
        body.append(f'<path class="line" d="M{pen.px(left)} {pen.px(v)}H{pen.px(frame.right)}"/>')
        body.append(pen.words(axis.show(t), left - 8, v + 4, "soft", "end"))
    middles = [frame.left + pitch * (i + 0.5) for i in range(len(names))]
    feet = [frame.bottom] * len(names)
    for i, values in enumerate(series.values()):  # one path a series: a picture of few bytes
        path = ""
        for k, value in enumerate(values):
            if value > 0:
                path += (
                    f"M{pen.px(middles[k] - wide / 2)} {pen.px(feet[k])}v{pen.px(-value * scale)}"
                )
                path += f"h{pen.px(wide)}v{pen.px(value * scale)}z"
                feet[k] -= value * scale
        body.append(f'<path class="c{i % pen.SERIES}" d="{path or "M0 0"}"/>')
    desc = []
    for k, name in enumerate(names):
        parts = ", ".join(f"{part} {axis.show(v[k])}".strip() for part, v in series.items() if v[k])
        desc.append(f"{below} {name}: {parts}".strip())
        x, tall = middles[k] - pitch / 2, frame.bottom - frame.top
        body.append(pen.rect("hit", x, frame.top, pitch, tall, desc[-1]))
    body += pen.sparse(names, middles, frame.bottom + 16, pitch)
    body.append(pen.words(below, frame.right, frame.bottom + 34, "soft", "end"))
    return pen.document(title, desc, width, height, body)


def heat(
    title: str,
    rows: Sequence[str],
    names: Sequence[str],
    values: Sequence[Sequence[float | None]],
    axis: Axis,
    *,
    below: str = "",
    width: int = 720,
) -> str:
    """A field of shades: `values[row][name]`, None where there is nothing. More is darker on a
    light ground, and lighter on a dark one."""
    known = [v for row in values for v in row if v is not None and (v > 0 or not axis.log)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    brief = [pen.short(row, width * 0.36) for row in rows]
    left = 10 + max(map(pen.text_width, brief), default=0)
    pitch = min((width - left) / (len(names) or 1), 40)
    tall, top = 22, 44
    body = [pen.words(axis.label, 0, 12, "soft"), pen.words(axis.show(low), 0, 32)]
    at = pen.text_width(axis.show(low)) + 8
    for i in range(pen.STEPS):
        body.append(pen.rect(f"h{i}", at + 18 * i, 21, 18, 14))
    body.append(pen.words(axis.show(high), at + 18 * pen.STEPS + 8, 32))
    desc = []
    for r, (row, line) in enumerate(zip(rows, values, strict=True)):
        y = top + r * tall
        body.append(pen.words(brief[r], left - 10, y + 15, anchor="end"))
        for c, value in enumerate(line):
            if value is None:
                continue
            step = min(int(pen.STEPS * pen.along(value, (low, high), axis.log)), pen.STEPS - 1)
            about = f"{row}, {below} {names[c]}: {axis.show(value)}".replace("  ", " ")
            body.append(pen.rect(f"h{step}", left + c * pitch, y, pitch - 1, tall - 1, about))
        present = [v for v in line if v is not None]
        if present:
            desc.append(f"{row}: {axis.show(min(present))} to {axis.show(max(present))}")
    foot = top + tall * len(rows)
    body += pen.sparse(
        names, [left + pitch * (c + 0.5) for c in range(len(names))], foot + 16, pitch
    )
    body.append(pen.words(below, left + pitch * len(names), foot + 34, "soft", "end"))
    return pen.document(title, desc, width, foot + 42, body)


def _said(p: Point, x: Axis, y: Axis) -> str:
    return f"{p.label or p.series}: {x.show(p.x)}, {y.show(p.y)}"


def _drawn(series: Mapping[str, Sequence[float]]) -> dict[int, str]:
    """The series of which there is anything to see, by number."""
    return {i: name for i, (name, values) in enumerate(series.items()) if any(values)}


def label_places(points: Sequence[Point], marks: Sequence[Box], room: Box) -> list[Box | None]:
    """Where each label goes: at its mark's side, or some way above or below, and over no other mark
    or label. None where there is no label, or no room; it is then in the mark's tooltip alone.
    Series of few points go first."""
    few = Counter(p.series for p in points)
    found: dict[int, Box] = {}
    for i in sorted(range(len(points)), key=lambda i: few[points[i].series]):
        m, wide = marks[i], pen.text_width(points[i].label) + 2
        x, y = (m.left + m.right) / 2, (m.top + m.bottom) / 2
        spots = [
            Box(u, v, u + wide, v + 15)
            for u, v in (
                (m.right + 2, y - 8),
                (m.left - 2 - wide, y - 8),
                (x - wide / 2, m.top - 16),
                (x - wide / 2, m.bottom + 1),
                (m.right - 2, m.top - 13),
                (m.left + 2 - wide, m.bottom - 2),
                (m.right - 2, m.bottom - 2),
                (m.left + 2 - wide, m.top - 13),
                *((x + side, m.top - up) for up in (36, 56, 76) for side in (-wide / 2, 4)),
                *((x - wide / 2, m.bottom + down) for down in (20, 40)),
            )
        ]
        taken = [*found.values(), *marks[:i], *marks[i + 1 :]]
        free = (
            s
            for s in spots
            if s.left >= room.left
            and s.right <= room.right
            and s.top >= room.top
            and s.bottom <= room.bottom
            and not any(s.meets(box) for box in taken)
        )
        if points[i].label and (spot := next(free, None)):
            found[i] = spot
    return [found.get(i) for i in range(len(points))]
