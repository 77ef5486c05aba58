"""The model card: front matter that is YAML, Markdown whose tables are tables, numbers that are the
files', and words from outside that stay words."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

import quantkit
from quantkit.calibration.imatrix import read_imatrix
from quantkit.gguf.splits import Splits
from quantkit.model import provenance
from quantkit.planning.build import Request
from quantkit.releases import card, manifest
from quantkit.releases.quality import Calibration, Score, Scores
from quantkit.releases.release import Release, release
from quantkit.reporting.inspection import Experts
from quantkit.reporting.survey import survey
from quantkit.reporting.table import Row, read_rows
from tests.conftest import sha256
from tests.fake_hub import Hub
from tests.releases.sets import DENSE

DATA = Path(__file__).parents[1] / "data"
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


def headed(text: str, heading: str) -> list[list[str]]:
    """The table whose first line begins with a heading, or has it in its first column."""
    return next(t for t in tables(text) if heading in (t[0][0], *(row[0] for row in t)))


def test_the_tables_are_those_of_the_files(text: str, made: Release) -> None:
    files, model, experts = (headed(text, h) for h in ("Name", "Architecture", "Expert"))
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
    record = replace(made.manifest, name=HOSTILE, architecture=HOSTILE)
    rows = [replace(row, use_case=HOSTILE) for row in made.rows]
    values = metadata(license=HOSTILE, tags=[HOSTILE], languages=[HOSTILE])
    scores = Scores((HOSTILE,), "", 256, 1.0, {r.type: Score(0.1, 0.1, 1.0, 1.0) for r in rows})
    matrix = Calibration(HOSTILE, HOSTILE, (HOSTILE,), 1, 1, 1, 2, 1)
    record = replace(record, scores=scores, imatrix=matrix, llama_cpp=HOSTILE)
    text = card.render(record, rows, description, values, {"size.svg": HOSTILE})
    matter = front(text)
    assert matter["model_name"] == HOSTILE
    assert HOSTILE in matter["tags"]
    plain = " ".join(HOSTILE.split())
    files, model, experts = (headed(text, h) for h in ("Name", "Architecture", "Expert"))
    assert files[1][-1] == plain
    assert ["Architecture", plain] in model
    assert experts[2] == ["1", "org/model"]
    assert {len(row) for row in experts} == {2}
    rendered = (
        MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("---\n", 2)[2])
    )
    body = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", rendered, flags=re.DOTALL)
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
    assert [line[1] for line in headed(text, "Expert")[1:]] == [
        "m-prose",
        "m-python",
        "m-prose",
        "m-c",
    ]


def shown(made: Release, values: dict[str, Any] | None = None, **changes: Any) -> str:
    """The card of a release as it would be otherwise; `rows` are among the changes."""
    rows = changes.pop("rows", made.rows)
    return card.render(replace(made.manifest, **changes), rows, DENSE, values or {})


def test_every_file_is_a_link_and_has_its_command(made: Release, text: str) -> None:
    assert f"[{made.manifest.files[0].name}](./{made.manifest.files[0].name})" in text
    assert "hf download" not in text  # there is nowhere to download from
    public = shown(made, repo="org/M-GGUF")
    for f in made.manifest.files:
        assert f"[{f.name}](https://huggingface.co/org/M-GGUF/resolve/main/{f.name})" in public
        command = f"hf download org/M-GGUF --include {f.name} --local-dir ."
        assert re.search(f"^{re.escape(command)}$", public, re.MULTILINE)
    assert "lms get https://huggingface.co/org/M-GGUF" in public
    assert "ollama run hf.co/org/M-GGUF:Q4_K_M" in public
    assert "llama-server -hf org/M-GGUF:Q4_K_M -c 2048" in public


def test_splits_are_links_and_come_with_one_command(
    frankenmoe: dict[str, Path], tmp_path: Path
) -> None:
    types, request = ["Q4_K_M", "Q8_0"], Request(splits=Splits(max_tensors=20))
    made = release(frankenmoe["mergekit"], tmp_path / "out", types, request=request)
    names = [f.name for f in made.manifest.files if f.type == "Q4_K_M"]
    assert len(names) > 1
    public = shown(made, repo="org/M")
    for i, name in enumerate(names, 1):
        assert f"[{i}](https://huggingface.co/org/M/resolve/main/{name})" in public
    (pattern,) = re.findall(r"--include '(\S+Q4_K_M\S*)' --local-dir", public)
    assert [f.name for f in made.manifest.files if fnmatch(f.name, pattern)] == names
    assert not fnmatch(names[0].replace("Q4_K_M", "Q4_K_M-moe"), pattern)
    assert "ollama run" not in public  # it takes no splits
    assert f"quantkit merge {names[0]} -o" in public


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "```\n<|im_start|>system\n{system_prompt}<|im_end|>\n<|im_start|>user\n{prompt}"
                 "<|im_end|>\n<|im_start|>assistant\n```"),
        ("````{{ messages[-1].content }}", "The chat template is more than turns of text"),
        ("{% for m in messages %}```{{ m.content }}{% endfor %}",
         "````\n```{system_prompt}```{prompt}\n````"),
        (None, "None: a base model"),
    ],
)  # fmt: skip
def test_the_prompt_format(made: Release, template: str | None, expected: str) -> None:
    values = {"tokenizer.ggml.tokens": ["a"], "tokenizer.chat_template": template}
    text = shown(made, {k: v for k, v in values.items() if v is not None})
    assert expected in text.partition("## Prompt format\n")[2].partition("\n## ")[0]


def test_how_it_was_made(frankenmoe: dict[str, Path], tmp_path: Path, text: str) -> None:
    assert ["Importance matrix", "none"] in headed(text, "llama.cpp")
    assert ["llama.cpp", f"{quantkit.LLAMA_CPP}: the bytes of its converter and its quantizer"] in (
        headed(text, "llama.cpp")
    )
    matrix = read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")
    made = release(frankenmoe["mergekit"], tmp_path / "out", ["Q4_K_M-moe"], imatrix=matrix)
    lines = dict(map(tuple, headed((made.directory / "README.md").read_text(), "llama.cpp")))
    assert "which tensor has which is quantkit's choice" in lines["llama.cpp"]
    covered = made.manifest.imatrix
    assert covered
    assert lines["Importance matrix"] == covered.name == "frankenmoe-4x2.2M.imatrix.gguf"
    assert sha256(made.directory / covered.name) == covered.sha256 == sha256(DATA / matrix.file)
    assert lines["Its data"] == f"{', '.join(matrix.datasets)}, {matrix.chunks} chunks"
    assert 0 < covered.covered <= covered.wanted
    assert lines["Its coverage"].startswith(f"{covered.covered} of {covered.wanted} tensors; ")
    assert lines["Its coverage"].endswith("experts")
    page = (made.directory / "index.html").read_text()
    assert f'with the importance matrix <a href="./{covered.name}">{covered.name}</a>' in page
    assert manifest.read(made.directory / "manifest.json") == made.manifest


def test_the_version_is_that_of_the_oracle() -> None:
    pinned = (DATA.parent.parent / "constraints-dev.txt").read_text()
    assert re.search(rf"^xllamacpp==\d+\.\d+\.{quantkit.LLAMA_CPP[1:]}$", pinned, re.MULTILINE)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "The source names no licence"),
        ({"license": "apache-2.0"}, "holds for these files: apache-2.0."),
        ({"license": "other", "license__name": "terms", "license__link": "LICENSE"},
         "holds for these files: terms (LICENSE)."),
    ],
)  # fmt: skip
def test_licence_and_credits(made: Release, given: dict[str, str], expected: str) -> None:
    text = shown(made, metadata(**given), base_model="org/model").partition("## Licence")[2]
    assert expected in text
    for name in ("org/model", "ggml-org/llama.cpp", "quantkit/quantkit"):
        assert name in text


def test_guidance(made: Release, text: str) -> None:
    assert "best file that fits" not in text  # any machine has 24 MB
    rows = [
        replace(row, max_ram_bytes=int(row.file_bytes * 3000), use_case="",
                experts_on_cpu_vram_bytes=int(row.file_bytes * 900),
                experts_on_cpu_ram_bytes=int(row.file_bytes * 2500))
        for row in made.rows
    ]  # fmt: skip
    text = shown(made, rows=rows)
    need = {row.type: row.max_ram_bytes for row in rows}
    for gigabytes, kind in headed(text, "RAM, on the CPU")[1:]:
        assert need[kind] <= int(gigabytes.split()[0]) * 10**9
    on_gpu = headed(text, "VRAM, all of it on the GPU (-ngl 99)")
    for gigabytes, kind in on_gpu[1:]:
        assert need[kind] + card.DRIVER <= int(gigabytes.split()[0]) * 10**9
    assert on_gpu[-1][1] == "Q8_0"
    beside = headed(text, "VRAM, with the experts in RAM (--cpu-moe)")[1:]
    assert beside[0][0] < on_gpu[1][0]
    dense = shown(made, rows=[replace(r, experts_on_cpu_vram_bytes=None) for r in rows])
    assert "experts in RAM" not in dense


def test_notes_on_types(made: Release, text: str) -> None:
    assert "Q4_0, Q5_0 are of an older kind" in text
    assert (
        "rearranges\nQ4_0, Q4_K for AVX2 (Q2_K for AVX-512), and Q4_0, Q4_K, Q5_K, Q6_K, Q8_0"
        in text
    )
    files = tuple(f for f in made.manifest.files if f.type == "Q6_K")
    rows = [row for row in made.rows if row.type == "Q6_K"]
    alone = shown(made, files=files, rows=rows)
    assert "older kind" not in alone
    assert "rearranges none of these for AVX2, and Q6_K for ARM" in " ".join(alone.split())
    assert "There is one: Q6_K." in alone


def test_what_was_measured_is_in_the_table(made: Release, text: str) -> None:
    head, *lines = headed(text, "Name")
    at = head.index("Measured error")
    assert [line[at] for line in lines] == [
        f"{100 * made.manifest.errors[r.type]:.2g}%" for r in made.rows
    ]
    assert not {"KL divergence", "Perplexity"} & set(head)
    one = Score(0.0123, 0.0009, 5.25, 0.9)
    scores = Scores(("held.txt",), "", 256, 5.125, {"Q4_K_M": one})
    text = shown(made, scores=scores)
    head, *lines = headed(text, "Name")
    cells = {line[head.index("Quant method")]: line for line in lines}
    kl, perplexity = head.index("KL divergence"), head.index("Perplexity")
    assert (cells["Q4_K_M"][kl], cells["Q4_K_M"][perplexity]) == ("0.0123 ± 0.0009", "5.2500")
    assert (cells["Q8_0"][kl], cells["Q8_0"][perplexity]) == ("-", "-")
    assert "of which it has 5.1250" in text
    assert "held.txt, 256 tokens of context" in text


def test_a_use_case_has_the_same_words_everywhere(
    made: Release, text: str, frankenmoe: dict[str, Path]
) -> None:
    head, *lines = headed(text, "Name")
    ours = {line[head.index("Quant method")]: line[head.index("Use case")] for line in lines}
    paths = [made.directory / f.name for f in made.manifest.files]
    assert ours == {row.type: row.use_case for row in read_rows(paths)}
    planned = survey(frankenmoe["mergekit"], list(ours)).rows
    assert ours == {row.type: row.use_case for row in planned}
    page = (made.directory / "index.html").read_text(encoding="utf-8")
    assert all(html.escape(words) in page for words in ours.values())
