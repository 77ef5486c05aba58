"""The page of a release: well-formed, whole in itself, and every number that of the files."""

from __future__ import annotations

import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from quantkit.charts import plots
from quantkit.charts.svg import Axis
from quantkit.gguf import tensor_names
from quantkit.gguf.splits import Splits
from quantkit.model.provenance import Merge
from quantkit.planning.build import Request
from quantkit.releases import card, page
from quantkit.releases.manifest import FileRecord, MadeFrom, Manifest, TensorRecord
from quantkit.releases.release import Release, release
from quantkit.reporting.numbers import gigabytes
from quantkit.reporting.table import Row
from tests.conftest import sha256
from tests.releases.sets import DENSE

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)<\\script>{{ 7 * 7 }}&amp;'
VOID = {"meta", "input", "br", "link", "img"}


class Element:
    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.inside: list[Element | str] = []

    def every(self, tag: str = "", **attributes: str) -> list[Element]:
        """Elements below with a tag and attributes (class: one of the classes)."""
        found = []
        for e in self.inside:
            if isinstance(e, Element):
                of_kind = all(
                    v in e.attributes.get(k.strip("_"), "").split() for k, v in attributes.items()
                )
                found += [e] * (e.tag == (tag or e.tag) and of_kind) + e.every(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        return "".join(e if isinstance(e, str) else e.text for e in self.inside)


class Tree(HTMLParser):
    """A tree of a page; asserts that every element that is opened is closed, and none else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open = [Element("", {})]
        self.feed(text)
        self.close()
        assert len(self.open) == 1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {k: v or "" for k, v in attrs})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Element(tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def tree(text: str) -> Element:
    return Tree(text).open[0]


@pytest.fixture(scope="module")
def made(frankenmoe: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The trained frankenMoE, each type in four splits."""
    request = Request(splits=Splits(max_tensors=10))
    out = tmp_path_factory.mktemp("release")
    return release(frankenmoe["mergekit"], out, ["Q8_0", "F16"], request=request)


@pytest.fixture(scope="module")
def seen(made: Release) -> Element:
    """The page that came with it."""
    return tree((made.directory / "index.html").read_text(encoding="utf-8"))


def row(size: int = 10**9, **changes: Any) -> Row:
    fields: dict[str, Any] = {f.name: None for f in dataclasses.fields(Row)}
    fields |= {
        "name": "M-Q4_K_M.gguf",
        "type": "Q4_K_M",
        "bits_per_weight": 4.85,
        "file_bytes": size,
        "files": 1,
        "max_ram_bytes": size,
        "context": 4096,
        "use_case": "",
    }
    return Row(**fields | changes)


def made_up(rows: list[Row], **changes: Any) -> str:
    """The page of files that are not there. `changes` are of the manifest."""
    tensors = tuple(
        TensorRecord(name, "F32", (1,), 0, size, "")
        for name, size in (("blk.0.attn_q.weight", 10), ("output.weight", 5))
    )
    files = tuple(FileRecord(r.name, r.type, r.file_bytes, 32 * "ab", tensors, "") for r in rows)
    manifest = Manifest(
        "0.1.0", "M", "", "llama", DENSE.parameters, None, MadeFrom("", ""), files=files
    )
    merge, more = changes.pop("merge", None), changes.pop("more", ())
    values = changes.pop("values", {})
    description = dataclasses.replace(DENSE, merge=merge)
    manifest = dataclasses.replace(manifest, **changes)
    return page.render(manifest, rows, description, values, more)


def test_every_number_is_that_of_the_files(made: Release, seen: Element) -> None:
    numbers = {
        d.every("dt")[0].text: d.every("dd")[0].text
        for d in seen.every("dl", _class="numbers")[0].every("div")
    }
    assert numbers == {
        "Parameters": "4.0M",
        "Active for a token": "2.8M",
        "Experts": "4, 2 used",
        "Layers": "3",
        "Tokens of context": "2,048",
        "Architecture": "llama",
    }
    lines = seen.every("table", _class="files")[0].every("tbody")[0].every("tr")
    assert len(lines) == len(made.rows) == 2
    for line, r in zip(lines, sorted(made.rows, key=lambda r: r.file_bytes), strict=True):
        values = [c.attributes["data-value"] for c in line.every() if "data-value" in c.attributes]
        assert values == [
            r.type,
            str(r.bits_per_weight),
            str(r.file_bytes),
            str(r.max_ram_bytes),
            str(r.experts_on_cpu_vram_bytes),
        ]
        assert r.use_case in line.text
        assert gigabytes(r.file_bytes) in line.text
        links = [unquote(a.attributes["href"]) for a in line.every("a")]
        assert len(links) == r.files
        sums = [b.attributes["data-copy"] for b in line.every("button")]
        assert sums == [sha256(made.directory / link) for link in links]
        assert sum((made.directory / link).stat().st_size for link in links) == r.file_bytes


def test_the_pictures_show_the_bytes_of_the_tensors(made: Release, seen: Element) -> None:
    layers = seen.every("div", _class="layer")
    assert len(layers) == 2
    tensors = [t for f in made.manifest.files if f.type == "Q8_0" for t in f.tensors]
    experts = sum(t.nbytes for t in tensors if "blk.1." in t.name and "_exps" in t.name)
    titles = [t.text for t in layers[0].every("div", _class="wide")[0].every("title")]
    assert len(titles) == 3
    assert titles[1].startswith(f"layer 1: experts {experts / 1e6:.2f} MB, ")
    outside = sum(t.nbytes for t in tensors if not t.name.startswith("blk."))
    assert layers[0].every("p")[0].text == f"Outside the layers: {gigabytes(outside)}."


def test_it_loads_nothing_from_elsewhere(made: Release, seen: Element) -> None:
    text = (made.directory / "index.html").read_text(encoding="utf-8")
    policy = next(m for m in seen.every("meta") if "http-equiv" in m.attributes)
    assert policy.attributes["content"].startswith("default-src 'none'; ")
    links = {a.attributes["href"] for a in seen.every("a")}
    assert {link for link in links if link[:2] != "./"} == {card.TOOL}  # led to, not loaded
    assert not [e for e in seen.every() if {"src", "srcset", "data", "poster"} & set(e.attributes)]
    assert not re.search(r"url\(|@import|\bimport\(|fetch\(", text)
    named = set(re.findall(r"https?://[^\"'<\s]+", text))
    assert named == {"http://www.w3.org/2000/svg", card.TOOL}


def test_names_cannot_break_out() -> None:
    split = {"experts_on_cpu_ram_bytes": 5, "experts_on_cpu_vram_bytes": 5}
    plain = tree(made_up([row(**split)], merge=merged("a/b", "c", "d")))
    mean = row(name=f"{HOSTILE}.gguf", type=HOSTILE, use_case=HOSTILE, **split)
    merge = merged(HOSTILE, HOSTILE, HOSTILE)
    seen = tree(made_up([mean], name=HOSTILE, architecture=HOSTILE, merge=merge, repo=HOSTILE))
    assert [s.text for s in seen.every("script")] == [s.text for s in plain.every("script")]
    assert not seen.every("img")
    assert not [e for e in seen.every() if any(k.startswith("on") for k in e.attributes)]
    assert seen.every("h1")[0].text == HOSTILE
    assert HOSTILE in seen.every("table", _class="files")[0].text
    (link,) = seen.every("td", _class="file")[0].every("a")
    assert re.fullmatch(r"\./[\w%.-]+", link.attributes["href"])
    assert unquote(link.attributes["href"]) == f"./{HOSTILE}.gguf"


def merged(base: str, *experts: str) -> Merge:
    return Merge(base, "hidden", experts)


def test_who_the_experts_are() -> None:
    merge = merged("mistralai/Mistral-7B-v0.1", "./here/m-code", "org/Chat-7B", "/tmp/m-maths/")
    seen = tree(made_up([row()], merge=merge))
    experts = seen.every("ol", _class="who")[0]
    assert [li.text for li in experts.every("li")] == ["0m-code", "1org/Chat-7B", "2m-maths"]
    assert [a.attributes["href"] for a in experts.every("a")] == [
        "https://huggingface.co/org/Chat-7B"
    ]
    assert "All else is from mistralai/Mistral-7B-v0.1." in seen.text


def test_what_fits_which_memory() -> None:
    rows = [
        row(8 * 10**9, name="A.gguf", type="Q2_K"),
        row(
            8 * 10**9 + 1,
            name="B.gguf",
            type="Q3_K_M",
            bits_per_weight=5.0,
            experts_on_cpu_ram_bytes=8 * 10**9,
            experts_on_cpu_vram_bytes=2 * 10**9,
        ),
        row(
            130 * 10**9,
            name="C.gguf",
            type="Q8_0",
            experts_on_cpu_ram_bytes=129 * 10**9,
            experts_on_cpu_vram_bytes=3 * 10**9,
        ),
    ]
    table = tree(made_up(rows)).every("table", _class="fit")[0]
    assert [th.text for th in table.every("thead")[0].every("th")] == [
        "",
        "12",
        "16",
        "24",
        "32",
        "48",
        "64",
        "96",
        "128",
        "192",
        "VRAM",
    ]
    marks = [
        [i.attributes["class"] for i in tr.every("i")] for tr in table.every("tbody")[0].every("tr")
    ]
    assert marks == [["whole"] * 9, ["whole"] * 9, ["none"] * 8 + ["whole"]]
    table = tree(made_up(rows[:2])).every("table", _class="fit")[0]
    first = [tr.every("i")[0].attributes["class"] for tr in table.every("tbody")[0].every("tr")]
    assert first == ["whole", "experts"]
    best = [
        [bool(td.attributes.get("class")) for td in tr.every("td")][:3]
        for tr in table.every("tbody")[0].every("tr")
    ]
    assert best == [[True, False, False], [False, True, True]]
    assert [th.text for th in table.every("thead")[0].every("th")][1] == "8"


def test_a_dense_model_has_no_word_of_experts() -> None:
    assert not tree(made_up([row(4 * 10**9)])).every("table", _class="fit")  # runs anywhere
    text = made_up([row(5 * 10**9)])
    assert tree(text).every("table", _class="fit")
    assert "xpert" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    assert "--cpu-moe" not in text
    assert "7.2B" in text


def test_how_to_run_it(seen: Element) -> None:
    commands = [c.text for c in seen.every("dl", _class="run")[0].every("code")]
    name = "frankenmoe-4x2.2M-Q8_0-00001-of-00004.gguf"
    assert commands[0] == f"llama-server -m {name} -c 2048"
    assert commands[1].endswith(" -ngl 99 --cpu-moe")
    assert "sha256sum -c SHA256SUMS --ignore-missing" in commands
    assert not [c for c in commands if c.startswith("ollama")]  # it takes no splits
    rows = [row(name=f"M-{t}.gguf", type=t) for t in ("Q2_K", "Q4_K_M", "Q8_0")]
    text = html.unescape(made_up(rows, repo="org/M-GGUF"))
    assert "llama-server -hf org/M-GGUF:Q4_K_M -c 4096" in text
    assert "ollama run hf.co/org/M-GGUF:Q4_K_M" in text
    text = html.unescape(made_up([row(name="a b.gguf")], name="A b; c"))
    assert "llama-server -m 'a b.gguf' -c 4096" in text
    assert "ollama create a-b-c -f Modelfile && ollama run a-b-c" in text


def test_columns_that_sort_have_a_value_in_every_line(seen: Element) -> None:
    table = seen.every("table", _class="files")[0]
    heads = table.every("thead")[0].every("th")
    for at, head in enumerate(heads):
        sorts = "aria-sort" in head.attributes
        assert sorts == bool(head.every("button"))
        for line in table.every("tbody")[0].every("tr"):
            cell = [e for e in line.inside if isinstance(e, Element)][at]
            assert ("data-value" in cell.attributes) == sorts
            if sorts and head.attributes.get("data-kind") != "text":
                float(cell.attributes["data-value"])
    assert [h.attributes.get("aria-sort") for h in heads].count("ascending") == 1


def three() -> tuple[Manifest, list[Row]]:
    """A release of three files that are not there."""
    rows = [row(n * 10**9, name=f"{t}.gguf", type=t) for n, t in enumerate("ABC", 1)]
    tensors = (TensorRecord("output.weight", "F32", (1,), 0, 5, ""),)
    files = tuple(FileRecord(r.name, r.type, r.file_bytes, "", tensors, "") for r in rows)
    made_from = MadeFrom("", "")
    return Manifest("0", "M", "", "llama", DENSE.parameters, None, made_from, files=files), rows


def test_where_it_comes_from_and_under_what_terms() -> None:
    values = {"general.license": "apache-2.0", "general.license.link": "javascript:alert(1)"}
    seen = tree(made_up([row()], base_model="org/Model", values=values))
    links = {a.text: a.attributes["href"] for a in seen.every("a")}
    assert links["org/Model"] == "https://huggingface.co/org/Model"
    assert links["quantkit"] == card.TOOL
    assert "Licence: apache-2.0." in seen.every("p", _class="under")[0].text
    values = {"general.license.name": "terms", "general.license.link": "https://example.org/t"}
    under = tree(made_up([row()], values=values)).every("p", _class="under")[0]
    assert under.every("a")[0].attributes["href"] == "https://example.org/t"
    assert "names no licence" in tree(made_up([row()])).every("p", _class="under")[0].text
    assert not [a for a in seen.every("a") if a.attributes["href"].startswith("javascript")]


def test_the_commands_are_those_of_the_card(made: Release, seen: Element) -> None:
    text = (made.directory / "README.md").read_text()
    for code in seen.every("dl", _class="run")[0].every("code"):
        assert re.search(f"^{re.escape(code.text)}$", text, re.MULTILINE), code.text
    public = dataclasses.replace(made.manifest, repo="org/M")
    texts = [card.render(public, made.rows, DENSE, {}), page.render(public, made.rows, DENSE)]
    found = tree(texts[1]).every("button", _class="sum")
    copies = [b.attributes["data-copy"] for b in found if b.text == "hf download"]
    assert len(copies) == len(made.rows)
    assert all(re.search(f"^{re.escape(c)}$", texts[0], re.MULTILINE) for c in copies)


def test_pictures_of_others_and_for_others(made: Release) -> None:

    def bars(*, width: int) -> str:
        return plots.bars("E", {"0": 0.5}, Axis("e"), width=width)

    error = page.Figure("Error by expert", "Measured.", bars)
    seen = tree(page.render(made.manifest, made.rows, DENSE, more=[error]))
    figure = next(s for s in seen.every("section") if "Measured." in s.text).every("figure")[0]
    assert [s.attributes["width"] for s in figure.every("svg")] == ["860", "342"]
    assert page.figures(made.manifest, made.rows) == []  # two files: nothing to compare
    text = made_up([row(n * 10**9, name=f"{t}.gguf", type=t) for n, t in enumerate("ABC", 1)])
    titles = [h.text for h in tree(text).every("h2")]
    assert {"Size against bits", "Where the bytes are"} <= set(titles)
    assert len(figures := page.figures(*three())) == 2
    assert all("<style>" in figure.draw(width=720) for figure in figures)


def test_pictures_of_measured_error() -> None:
    rows = [row(n * 10**9, name=f"M-{t}.gguf", type=t) for n, t in ((2, "Q2_K"), (3, "Q8_0"))]
    by_size = page.error_by_size(rows, {"Q2_K": 0.09, "Q8_0": 0.0004})
    titles = [
        t.text
        for f in tree(made_up(rows, more=[by_size])).every("figure")
        for t in f.every("title")
    ]
    assert {"Q2_K: 2 GB, 9%", "Q8_0: 3 GB, 0.04%"} <= set(titles)


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("experts", "blk.0.ffn_gate_exps.weight blk.3.ffn_down_exps.bias"),
        ("attention", "blk.0.attn_q.weight blk.9.attn_kv_a_mqa.weight blk.0.ssm_in.weight"),
        ("feed-forward", "blk.0.ffn_up.weight blk.0.ffn_down_shexp.weight"),
        ("embeddings", "token_embd.weight output.weight per_layer_token_embd.weight"),
        ("the rest", "output_norm.weight blk.0.ffn_gate_inp.weight blk.0.ffn_norm.weight"),
    ],
)  # fmt: skip
def test_what_bytes_are_counted_with(part: str, names: str) -> None:
    assert {tensor_names.part(tensor_names.parse(name)) for name in names.split()} == {part}
    assert part in tensor_names.PARTS
