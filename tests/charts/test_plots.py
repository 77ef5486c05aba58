"""Pictures: SVG that parses, shows the numbers it was given, and can be read by everybody."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest

from quantkit.charts import plots, svg
from quantkit.charts.plots import Point
from quantkit.charts.svg import Axis, Box

HOSTILE = "</title><script>alert(1)</script>\x00\x1b&\"'"
PLAIN = Axis("GB", "{:g}".format)


def parsed(picture: str) -> ET.Element:
    """The SVG without its namespace."""
    return ET.fromstring(picture.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1))


def all_kinds(name: str = "Q4_K_M", width: int = 720) -> dict[str, str]:
    other, axis = {name: [1.0, 2.0], "rest": [3.0, 4.0]}, Axis(name)
    points = [Point(name, 1, 1, name), Point("b", 2, 0.5)]
    return {
        "scatter": plots.scatter(name, points, axis, axis, front=True, width=width),
        "stacked": plots.stacked(name, [name, "b"], other, axis, width=width),
        "bars": plots.bars(name, {name: 1.0, "b": 2.0}, axis, width=width),
        "columns": plots.columns(name, [name, "b"], other, axis, below=name, width=width),
        "heat": plots.heat(name, [name], ["0", "1"], [[1.0, None]], axis, width=width),
    }


@pytest.mark.parametrize("kind", all_kinds())
def test_names_cannot_break_out(kind: str) -> None:
    root = parsed(all_kinds(HOSTILE)[kind])
    assert not list(root.iter("script"))
    assert root.get("aria-label") == HOSTILE.replace("\x00", "").replace("\x1b", "")
    title, desc = root.find("title"), root.find("desc")
    assert title is not None
    assert desc is not None
    assert title.text == root.get("aria-label")
    assert desc.text


@pytest.mark.parametrize("kind", all_kinds())
def test_it_loads_nothing_and_brings_both_grounds(kind: str) -> None:
    picture = all_kinds()[kind]
    assert re.findall(r"https?://[^\"]*|url\(|@import", picture) == ["http://www.w3.org/2000/svg"]
    assert svg.LIGHT["ground"] in picture
    assert svg.DARK["ground"] in picture
    assert "prefers-color-scheme:dark" in picture


@pytest.mark.parametrize("kind", all_kinds())
def test_a_page_takes_the_drawing_alone(kind: str) -> None:
    whole, inner = all_kinds()[kind], svg.inline(all_kinds()[kind])
    root = parsed(inner)
    assert root.find("style") is None
    assert root.find("title") is None
    assert (root.get("width"), root.get("viewBox", "").split()[:3]) == ("720", ["0", "0", "720"])
    marks = [(e.tag, e.attrib) for e in root.iter() if e.tag in ("text", "path", "rect")]
    assert len(marks) > 2
    assert marks == [
        (e.tag, e.attrib)
        for e in parsed(whole).iter()
        if e.tag in ("text", "path", "rect") and e.get("class") != "ground"
    ]


def test_bars_are_as_long_as_their_values() -> None:
    picture = plots.stacked("t", ["a", "b"], {"x": [10.0, 20.0], "y": [30.0, 40.0]}, PLAIN)
    rects = [r for r in parsed(picture).iter("rect") if r.get("class") != "ground"]
    lengths = [float(r.get("width", 0)) + 1 for r in rects]  # a pixel is the gap
    assert [x / sum(lengths[2:]) for x in lengths] == pytest.approx(
        [1 / 6, 1 / 2, 1 / 3, 2 / 3], abs=0.002
    )
    assert [r.findtext("title") for r in rects] == [
        "a, x: 10 (25%)",
        "a, y: 30 (75%)",
        "b, x: 20 (33%)",
        "b, y: 40 (67%)",
    ]
    assert {"40", "60"} <= {t.text for t in parsed(picture).iter("text")}


def test_shares_are_all_of_one_length() -> None:
    values = {"x": [10.0, 20.0], "y": [30.0, 40.0]}
    picture = plots.stacked("t", ["a", "b"], values, PLAIN, share=True)
    rects = [r for r in parsed(picture).iter("rect") if r.get("class") != "ground"]
    a, b, c, d = (float(r.get("width", 0)) + 1 for r in rects)
    assert (a + b, a / (a + b)) == pytest.approx((c + d, 0.25), abs=0.2)


def test_columns_stand_on_each_other() -> None:
    values = {"x": [1.0, 2.0, 0.0], "y": [3.0, 4.0, 5.0]}
    picture = plots.columns("t", ["0", "1", "2"], values, PLAIN, below="layer")
    paths = [
        p.get("d", "") for p in parsed(picture).iter("path") if p.get("class") in ("c0", "c1")
    ][-2:]
    bars = [re.findall(r"M([\d.]+) ([\d.]+)v-([\d.]+)h", path) for path in paths]
    assert [len(found) for found in bars] == [2, 3]  # nothing is drawn for nothing
    (x, low, tall), (x_above, foot, above) = ([float(n) for n in b[0]] for b in bars)
    assert (x_above, foot, above) == pytest.approx((x, low - tall, 3 * tall), abs=0.2)
    hits = [r.findtext("title") for r in parsed(picture).iter("rect") if r.get("class") == "hit"]
    assert hits == ["layer 0: x 1, y 3", "layer 1: x 2, y 4", "layer 2: y 5"]


def test_heat_shades_by_value_and_leaves_gaps() -> None:
    picture = plots.heat(
        "t", ["a"], ["0", "1", "2", "3"], [[0.01, 0.1, None, 1.0]], Axis("e", log=True)
    )
    cells = [r for r in parsed(picture).iter("rect") if r.find("title") is not None]
    assert [(c.get("class"), c.findtext("title")) for c in cells] == [
        ("h0", "a, 0: 0.01"),
        ("h3", "a, 1: 0.1"),
        ("h6", "a, 3: 1"),
    ]


def test_the_frontier_is_what_no_other_beats() -> None:
    a, b, c, d = Point("a", 1, 9), Point("b", 2, 5), Point("c", 3, 7), Point("d", 4, 1)
    assert plots.frontier([d, c, b, a]) == [a, b, d]


@pytest.mark.parametrize("width", [340, 720])
def test_labels_overlap_no_label_and_no_other_mark(width: int) -> None:
    """A crowd: labels are left out before they cover each other."""
    points = [Point(f"Q{i}_K_M", i % 7 + i / 90, i % 5 + i / 50) for i in range(60)]
    picture = plots.scatter("t", points, PLAIN, PLAIN, width=width)
    root = parsed(picture)
    boxes = []
    for t in root.iter("text"):
        if (t.text or "").startswith("Q"):
            x, y, wide = (
                float(t.get("x", 0)),
                float(t.get("y", 0)),
                svg.text_width(t.text or ""),
            )
            left = x - wide * {"end": 1, "middle": 0.5}.get(t.get("text-anchor", ""), 0)
            boxes.append(Box(left, y - 9, left + wide, y + 2))
    assert 8 < len(boxes) < 60
    assert not any(a.meets(b) for a, b in itertools.combinations(boxes, 2))
    assert all(b.left >= 0 and b.right <= width for b in boxes)
    assert len([p for p in root.iter("path") if p.find("title") is not None]) == 60


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[3.0], [1e-4, 0.08], [17.3, 49.6], [5.0, 5.0], [0.001, 1e6]])
def test_axes_end_beyond_their_values_on_round_numbers(values: list[float], log: bool) -> None:
    (low, high), ticks = svg.domain(values, Axis("", log=log), 5)
    assert low <= min(values) <= max(values) <= high
    assert low < high
    assert 1 <= len(ticks) <= 12
    assert all(float(f"{t:.2g}") == pytest.approx(t) for t in ticks)


def test_points_without_a_label_are_small_and_in_nobodys_way() -> None:
    points = [Point("", i, 20 - i, "best") for i in range(20)] + [Point("Q4_K_M", 10, 12, "ours")]
    root = parsed(plots.scatter("t", points, PLAIN, PLAIN, front=True))
    scaled = [p for p in root.iter("path") if "scale" in p.get("transform", "")]
    assert [p.findtext("title") for p in scaled] == [f"best: {i}, {20 - i}" for i in range(20)]
    assert "Q4_K_M" in [t.text for t in root.iter("text")]
    assert root.findtext("desc") == "Q4_K_M: 10, 12"


def test_a_point_of_its_own_has_its_label_before_a_crowd() -> None:
    crowd = [Point(f"Q{i}", 1 + i / 50, 1 + i / 90, "llama.cpp") for i in range(40)]
    picture = plots.scatter("t", [*crowd, Point("chosen", 1.4, 1.22, "fit")], PLAIN, PLAIN)
    assert "chosen" in [t.text for t in parsed(picture).iter("text")]


def test_zero_on_a_logarithmic_axis() -> None:
    axis = Axis("e", log=True)
    heat = parsed(plots.heat("t", ["a"], ["0", "1", "2"], [[0.0, 0.1, 1.0]], axis))
    cells = [r.get("class") for r in heat.iter("rect") if r.find("title") is not None]
    assert cells == ["h0", "h0", "h6"]
    picture = plots.scatter("t", [Point("a", 1, 0), Point("b", 1, 0.1)], PLAIN, axis, front=True)
    assert [t.text for t in parsed(picture).iter("text") if t.text in "ab"] == ["b"]


def test_nothing_is_drawn_of_nothing() -> None:
    for picture in (
        plots.scatter("t", [], PLAIN, PLAIN),
        plots.scatter("t", [Point("a", 1, 0)], PLAIN, Axis("e", log=True), front=True),
        plots.stacked("t", [], {}, PLAIN),
        plots.stacked("t", ["a"], {"x": [0.0]}, PLAIN, share=True),
        plots.columns("t", [], {}, PLAIN),
        plots.heat("t", [], [], [], PLAIN),
    ):
        assert "nan" not in picture
        parsed(picture)


# Machado, Oliveira, Fernandes 2009, severity 1.0
SIGHT = {
    "all three cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
                   (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
                     (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
                   (0.004733, 0.691367, 0.303900)),
}  # fmt: skip


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def oklab(rgb: list[float]) -> tuple[float, ...]:
    r, g, b = (min(max(c, 0), 1) for c in rgb)
    long, medium, small = (
        x ** (1 / 3)
        for x in (
            0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b,
            0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b,
            0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b,
        )
    )
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * small,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * small,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * small,
    )


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("palette", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_series_are_told_apart_by_every_eye(palette: dict[str, str], sight: str) -> None:
    seen = [
        oklab([dot(row, linear(palette[f"c{i}"])) for row in SIGHT[sight]])
        for i in range(svg.SERIES)
    ]
    assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 0.1


def contrast(a: str, b: str) -> float:
    """WCAG 2's ratio."""
    y = sorted(dot((0.2126, 0.7152, 0.0722), linear(c)) for c in (a, b))
    return (y[1] + 0.05) / (y[0] + 0.05)


@pytest.mark.parametrize("palette", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_text_is_readable_and_shades_grow(palette: dict[str, str]) -> None:
    assert contrast(palette["ink"], palette["ground"]) > 7
    assert contrast(palette["soft"], palette["ground"]) > 4.5
    shades = [contrast(palette[f"h{i}"], palette["ground"]) for i in range(svg.STEPS)]
    assert shades == sorted(shades)
