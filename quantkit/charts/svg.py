"""What pictures are drawn with: colours, axes, text, and the SVG document around them.

The colours of series are told apart with every common kind of colour blindness: their least
distance in OKLab is 0.1 as seen through the matrices of Machado, Oliveira and Fernandes (2009).
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LIGHT = {
    "ground": "#ffffff", "ink": "#1d2126", "soft": "#5c646d", "line": "#e2e2dc",
    "c0": "#225d96", "c1": "#b57c0e", "c2": "#5ac7a8", "c3": "#7b2643", "c4": "#828994",
    "h0": "#eaf0f6", "h1": "#cfdeed", "h2": "#a9c5e0", "h3": "#7fa8cf", "h4": "#5488b9",
    "h5": "#2f689f", "h6": "#123f6b",
}  # fmt: skip
DARK = {
    "ground": "#15181c", "ink": "#e8e8e4", "soft": "#9ba3ab", "line": "#2e343b",
    "c0": "#6299db", "c1": "#e9b45f", "c2": "#8fe3dc", "c3": "#c4667b", "c4": "#4e575e",
    "h0": "#1d2630", "h1": "#213a54", "h2": "#27517b", "h3": "#356ca3", "h4": "#558cc6",
    "h5": "#85b2e2", "h6": "#c9e0f8",
}  # fmt: skip
SERIES, STEPS = 5, 7  # colours c0 to c4, shades h0 to h6


def _rule(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


_MARKS = (
    ".picture text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;"
    "fill:var(--ink);font-variant-numeric:tabular-nums;paint-order:stroke;"
    "stroke:var(--ground);stroke-width:3px}.picture .soft{fill:var(--soft)}"
    ".picture .ground{fill:var(--ground)}.picture .line{stroke:var(--line);fill:none}"
    ".picture .front{stroke:var(--soft);fill:none;stroke-dasharray:2 4;stroke-linecap:round}"
    ".picture .reach{stroke:var(--soft);stroke-opacity:.6;fill:none}"
    ".picture .hit{fill:transparent}.picture .hit:hover{fill:var(--ink);fill-opacity:.08}"
    + "".join(f".picture .c{i}{{fill:var(--c{i})}}" for i in range(SERIES))
    + "".join(f".picture .h{i}{{fill:var(--h{i})}}" for i in range(STEPS))
)
# style sheet of a page with pictures in it
COLOURS = (
    f":root{{color-scheme:light dark;{_rule(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_rule(DARK)}}}}}{_MARKS}"
)
_STYLE = (
    f"<style>.picture{{{_rule(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{.picture{{{_rule(DARK)}}}}}{_MARKS}</style>"
)


@dataclass(frozen=True)
class Axis:
    """What numbers mean: their name with its unit, how one is written, and whether the axis is
    logarithmic."""

    label: str
    show: Callable[[float], str] = "{:.4g}".format
    log: bool = False


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def inline(picture: str) -> str:
    """A picture for a page that has `COLOURS` in its style, and says the title beside it: without
    style, ground, margin and title."""
    root, _, rest = picture.partition(f">{_STYLE}")
    wide, tall = (float(n) - 2 * _MARGIN for n in re.findall(r'(?:width|height)="([\d.]+)"', root))
    root = re.sub("viewBox=.*", f'viewBox="0 0 {px(wide)} {px(tall)}"', root)
    return f'{root} width="{px(wide)}">{rest.partition("</title>")[2]}'


def text_width(text: str) -> float:
    """Pixels that a text of 12 px takes, at most: in DejaVu Sans, the widest of common fonts."""
    widths = {**dict.fromkeys("ijl.,:;|!'()[] ftr", 4.8), **dict.fromkeys("mwMW@%", 11.7)}
    return sum(widths.get(c, 8.8 if c.isupper() else 7.6) for c in text)


def domain(
    values: Sequence[float], axis: Axis, count: int
) -> tuple[tuple[float, float], list[float]]:
    """The two ends of an axis that shows the values, and its ticks: round numbers."""
    low, high = min(values, default=0.1 * axis.log), max(values, default=1.0)
    if axis.log:
        exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
        ends = (max(t for t in ticks if t < low), min(t for t in ticks if t > high))
        inside = [t for t in ticks if ends[0] <= t <= ends[1]]
        return ends, inside if len(inside) <= 8 else [t for t in inside if _is_power(t)]
    rough = ((high - low) or abs(high) or 1.0) / max(count, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    last += first == last
    return (first * step, last * step), [i * step for i in range(first, last + 1)]


def _is_power(t: float) -> bool:
    return abs(math.log10(t) - round(math.log10(t))) < 1e-9


def along(value: float, ends: tuple[float, float], log: bool) -> float:
    """How far along an axis a value lies, 0 to 1. On a logarithmic one, nothing lies at 0."""
    low, high = ends
    if log and value <= 0:
        return 0.0
    if log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.5


def sparse(names: Sequence[str], middles: Sequence[float], y: float, pitch: float) -> list[str]:
    """Every name, or every second, fifth, tenth ..., so that none touches the next."""
    wide = max(map(text_width, names), default=0) + 6
    every = next((n for n in (1, 2, 5, 10, 20, 50, 100) if n * pitch >= wide), len(names) or 1)
    return [words(names[i], middles[i], y, "soft", "middle") for i in range(0, len(names), every)]


def legend(series: Mapping[int, str], width: float, marks: bool = False) -> tuple[str, int]:
    """The names of series by number, with their colours, in as many lines as it takes; with
    `marks`, in the shapes of points. And the height of it, nothing for one series."""
    if len(series) < 2:
        return "", 0
    body, u, line = "", 0.0, 0
    for i, name in series.items():
        wide = 18 + text_width(name) + 14
        if u and u + wide > width:
            u, line = 0.0, line + 1
        body += shape(i if marks else 1, u + 6, 11 + 20 * line, colour=i)
        body += words(name, u + 18, 15 + 20 * line)
        u += wide
    return body, 30 + 20 * line


_SHAPES = (  # circle, square, diamond, triangle, cross
    "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z", "M-5-5h10v10h-10z",
    "M0-6.5L6.5 0L0 6.5L-6.5 0z", "M0-6L6 5H-6z", "M-6-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
)  # fmt: skip


def shape(
    i: int, x: float, y: float, tooltip: str = "", colour: int | None = None, small: bool = False
) -> str:
    """The mark of series `i`: a shape of its own, so that colour is not all that tells."""
    colour = (i if colour is None else colour) % SERIES
    scale = "scale(.5)" if small else ""
    place = f'class="c{colour}" transform="translate({px(x)} {px(y)}){scale}"'
    title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
    return f'<path {place} d="{_SHAPES[i % len(_SHAPES)]}">{title}</path>'


def rect(kind: str, x: float, y: float, wide: float, tall: float, tooltip: str = "") -> str:
    """A rectangle of a class, with its corner at x, y."""
    place = f'x="{px(x)}" y="{px(y)}" width="{px(wide)}" height="{px(tall)}"'
    title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
    return f'<rect class="{kind}" {place}>{title}</rect>'


def words(text: str, x: float, y: float, kind: str = "", anchor: str = "") -> str:
    """A line of text. `kind` is a class, `anchor` says which part of it is at `x`."""
    style = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{px(x)}" y="{px(y)}"{style}>{escape(text)}</text>' if text else ""


def short(text: str, room: float) -> str:
    """The text, with its middle left out where it is wider than `room` pixels."""
    while text_width(text) > room and len(text) > 5:
        half = len(text) // 2
        text = text[: half - 1].rstrip("…") + "…" + text[half + 1 :].lstrip("…")
    return text


def escape(text: str) -> str:
    """As XML takes it: without the characters that it forbids."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "", text))


def px(x: float) -> str:
    """A coordinate in as few characters as it takes."""
    text = f"{x:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


_MARGIN = 16


def document(
    title: str, desc: Sequence[str], width: int, height: float, body: Sequence[str]
) -> str:
    """The whole SVG. `desc` says in words what is drawn, for those who cannot see it."""
    wide, tall = f"{width + 2 * _MARGIN}", px(height + 2 * _MARGIN)
    size = f'width="{wide}" height="{tall}"'
    box = f'viewBox="-{_MARGIN} -{_MARGIN} {wide} {tall}" {size}'
    ground = f'<rect class="ground" x="-{_MARGIN}" y="-{_MARGIN}" {size} rx="8"/>'
    said = escape("; ".join(desc))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" role="img" '
        f'aria-label="{escape(title)}" {box}>{_STYLE}{ground}<title>{escape(title)}</title>'
        f"<desc>{said}</desc>{''.join(body)}</svg>\n"
    )
