"""The model card: front matter that is YAML, Markdown whose tables are tables, numbers that are the
files', and words from outside that stay words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from quantkit.model import provenance
from quantkit.releases import card
from quantkit.releases.release import Release, release
from quantkit.reporting.inspection import Experts
from quantkit.reporting.table import Row
from tests.fake_hub import Hub
from tests.releases.sets import DENSE

HOSTILE = "a|b\n# <script>alert(1)</script> [x](javascript:y) `z` *w* \"q\" 'r' --- : &amp; ![i](j)"


@pytest.fixture(scope="module")
def made(frankenmoe: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(frankenmoe["mergekit"], tmp_path_factory.mktemp("card") / "out")


@pytest.fixture(scope="module")
def text(made: Release) -> str:
    return (made.directory / "README.md").read_text()


def front(text: str) -> dict[str, Any]:
    start, matter, _ = text.split("---\n", 2)
    assert start == ""
    return dict(yaml.safe_load(matter))


def tables(text: str) -> list[list[list[str]]]:
    """Every table of a card: rows of cells, as a reader sees them."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt().enable("table").parse(text.split("---\n", 2)[2])
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            children = tokens[i + 1].children or []
            found[-1][-1].append("".join(c.content for c in children))
    return found


def test_the_front_matter(text: str) -> None:
    assert front(text) == {
        "model_name": "frankenmoe-4x2.2M",
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "tags": ["gguf", "moe", "mergekit", "merge"],
    }


def test_the_tables_are_those_of_the_files(text: str, made: Release) -> None:
    files, model, experts = tables(text)
    assert [row[0] for row in files[1:]] == [f.name for f in made.manifest.files]
    for line, row in zip(files[1:], made.rows, strict=True):
        size = (made.directory / row.name).stat().st_size
        assert line[files[0].index("Size")] == f"{size / 1e6:.2f} MB"
        assert line[files[0].index("Max RAM required")] == f"{row.max_ram_bytes / 1e6:.2f} MB"
        assert line[files[0].index("Bits")].endswith(f"({row.bits_per_weight:.2f} bpw)")
    assert ["Parameters", "4.0M in all, 2.8M used for a token"] in model
    assert ["Experts", "4, 2 used for a token"] in model
    assert [row[1] for row in experts[1:]] == ["m-prose", "m-python", "m-prose", "m-c"]


def test_every_file_that_the_card_names_is_there(text: str, made: Release) -> None:
    there = {p.name for p in made.directory.iterdir()}
    named = set(re.findall(r"[\w.-]+\.(?:gguf|svg|json)\b", text)) | {"Modelfile", "SHA256SUMS"}
    assert named <= there
    assert {"size.svg", "bytes.svg", "error.svg"} <= named


def metadata(**values: Any) -> dict[str, Any]:
    return {f"general.{key.replace('__', '.')}": value for key, value in values.items()}


def test_what_the_source_says_is_carried_over(made: Release) -> None:
    values = metadata(
        license="cc-by-nc-4.0",
        tags=["merge", "text"],
        languages=["en", "de"],
        base_model__count=2,
        base_model__0__repo_url="https://huggingface.co/org/prose",
        base_model__1__repo_url="https://huggingface.co/org/code",
    )
    found = card.front_matter(made.manifest, DENSE, values)
    assert found["license"] == "cc-by-nc-4.0"
    assert found["language"] == ["en", "de"]
    assert (found["base_model"], found["base_model_relation"]) == (
        ["org/prose", "org/code"],
        "merge",
    )
    assert found["tags"] == ["merge", "text", "gguf"]
    published = replace(made.manifest, repo="me/Merge-GGUF", base_model="me/Merge")
    found = card.front_matter(published, DENSE, values)
    assert (found["base_model"], found["base_model_relation"]) == (["me/Merge"], "quantized")
    assert found["quantized_by"] == "me"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"license": "apache-2.0"}, {"license": "apache-2.0"}),
        (
            {"license": "other", "license__name": "terms", "license__link": "LICENSE"},
            {"license": "other", "license_name": "terms", "license_link": "LICENSE"},
        ),
        (
            {"license": "Apache License 2.0"},
            {"license": "other", "license_name": "apache-license-2.0"},
        ),
        ({"license__name": "My Terms"}, {"license": "other", "license_name": "My Terms"}),
    ],
)
def test_licences(given: dict[str, str], expected: dict[str, str]) -> None:
    assert provenance.licence(metadata(**given)) == expected


def test_words_from_outside_stay_words(made: Release) -> None:
    merge = provenance.Merge(HOSTILE, HOSTILE, (HOSTILE, "org/model"))
    description = replace(DENSE, experts=Experts(1, 1), layers=1, context=1, merge=merge)
    manifest = replace(made.manifest, name=HOSTILE, architecture=HOSTILE)
    rows = [replace(row, use_case=HOSTILE) for row in made.rows]
    values = metadata(license=HOSTILE, tags=[HOSTILE], languages=[HOSTILE])
    text = card.render(manifest, rows, description, values, {"size.svg": HOSTILE})
    matter = front(text)
    assert matter["model_name"] == HOSTILE
    assert HOSTILE in matter["tags"]
    plain = " ".join(HOSTILE.split())
    files, model, experts = tables(text)
    assert files[1][-1] == plain
    assert ["Architecture", plain] in model
    assert experts[2] == ["1", "org/model"]
    assert {len(row) for row in experts} == {2}
    html = (
        MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("---\n", 2)[2])
    )
    body = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", html, flags=re.DOTALL)
    assert "<script" not in body
    assert "javascript:" not in "".join(re.findall(r'(?:href|src)="[^"]*"', body))


def test_which_file_to_choose(made: Release) -> None:
    def row(kind: str, bits: float, gigabytes: float) -> Row:
        need = int(gigabytes * 1e9)
        return replace(made.rows[0], type=kind, bits_per_weight=bits, max_ram_bytes=need)

    rows = [row("Q2_K", 3, 3), row("Q4_0", 4.5, 7), row("Q4_K_M", 4.8, 7.5), row("Q8_0", 8.5, 30)]
    assert [(n, r.type) for n, r in card.choices(rows)] == [
        (4, "Q2_K"),
        (8, "Q4_K_M"),
        (32, "Q8_0"),
    ]
    assert card.choices([row("Q8_0", 8.5, 5000)]) == []
    assert [r.type for _, r in card.choices(rows[1:2])] == ["Q4_0"]
    assert card.usual(rows).type == "Q4_K_M"
    assert card.usual([rows[0], rows[3]]).type == "Q2_K"


def test_a_dense_model(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    made = release(checkpoint("llama-dense"), tmp_path / "out", ["Q8_0"], context=128)
    text = (made.directory / "README.md").read_text()
    assert "moe" not in front(text)["tags"]
    assert "xpert" not in text
    assert f"llama-cli -m {made.manifest.files[0].name} -c 128\n" in text
    assert made.manifest.experts is None


def test_a_model_of_the_hub(
    frankenmoe: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.publish("org/Merge-4x2M", frankenmoe["mergekit"])
        made = release("hf://org/Merge-4x2M", tmp_path / "out", ["Q8_0"])
        assert release("hf://org/Merge-4x2M", tmp_path / "out", ["Q8_0"]).states == {
            "Merge-4x2M-Q8_0.gguf": "kept"
        }
    text = (made.directory / "README.md").read_text()
    assert front(text)["base_model"] == ["org/Merge-4x2M"]
    assert front(text)["base_model_relation"] == "quantized"
    assert "[org/Merge-4x2M](https://huggingface.co/org/Merge-4x2M)" in text
    assert [line[1] for line in tables(text)[2][1:]] == ["m-prose", "m-python", "m-prose", "m-c"]
