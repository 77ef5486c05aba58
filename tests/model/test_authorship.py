"""Names and authors as a person gives them: `--model-name` and `--metadata`.

The sums are of files that llama.cpp's converter (b11549) made of the golden case mixtral-4x, with
`--outtype bf16` and the options that the tests have, of the same metadata file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quantkit import errors
from quantkit.cli import app
from quantkit.gguf.container import read_header
from quantkit.model.authorship import KEYS
from tests.conftest import sha256

GIVEN: dict[str, Any] = {
    "general.name": "Given Name", "general.author": "A. Person", "general.version": "v2.1",
    "general.organization": None, "general.finetune": "chat", "general.basename": "Given",
    "general.description": "One of several.\n\u00e9", "general.quantized_by": "someone",
    "general.size_label": "4x1M", "general.license.name": "own",
    "general.license.link": "https://example.org/l", "general.url": "https://example.org",
    "general.doi": "10.1/2", "general.uuid": "1234", "general.repo_url": "https://example.org/r",
    "general.source.url": "https://example.org/s", "general.source.doi": "10.3/4",
    "general.source.uuid": "5678", "general.source.repo_url": "https://example.org/sr",
    "general.base_models": [
        {"name": "One", "author": "X", "version": "1", "organization": "O", "description": "d",
         "url": "u", "doi": "i", "uuid": "w", "repo_url": "r"},
        {},
    ],
    "general.datasets": [{"name": "Data", "repo_url": "https://example.org/d"}],
    "general.tags": ["a", "b"], "general.languages": [],
    "general.sampling.temp": 0.7, "general.sampling.top_k": 40, "general.sampling.top_p": 1,
    "general.sampling.min_p": 0.05, "general.sampling.sequence": "kt",
    "general.sampling.mirostat": 2,
}  # fmt: skip


@pytest.fixture
def given(tmp_path: Path) -> Callable[[Any], str]:
    """Write a file for `--metadata`: its bytes, or what they are in JSON."""

    def write(value: Any) -> str:
        path = tmp_path / "given.json"
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        return str(path)

    return write


def converted(source: Path, output: Path, *args: str) -> str:
    """What the command says of an error; nothing where there is none."""
    words = ["convert", str(source), "--outtype", "bf16", "-o", str(output), *args]
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, errors.QuantkitError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return ""


def test_a_name_and_the_type_in_the_name_of_the_file(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "n-{ftype}-{OUTTYPE}.gguf"
    assert not converted(checkpoint("mixtral-4x"), output, "--model-name", 'My "Name" é')
    (path,) = tmp_path.iterdir()
    assert path.name == "n-bf16-BF16.gguf"
    expected = "090f3f6ad18ef7c1f9c3579a511579a046536038e21c74eb675f56feb94f7604"
    assert sha256(path) == expected


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "2075de425633242e9826326d6da843d0cb6b4838102313abcddb0e4f1ebd03be"),
        (
            ["--model-name", "Other"],
            "f038d93ac336bba308cf1ee7f8172da083af8d7dcc6406b20f88382c1f2a6730",
        ),
    ],
)
def test_the_keys_of_a_file(
    args: list[str],
    expected: str,
    checkpoint: Callable[[str], Path],
    given: Callable[[Any], str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.gguf"
    assert not converted(checkpoint("mixtral-4x"), path, "--metadata", given(GIVEN), *args)
    assert sha256(path) == expected


def test_nothing_is_given_for_the_name(
    checkpoint: Callable[[str], Path], given: Callable[[Any], str], tmp_path: Path
) -> None:
    """The directory's then, as it is."""
    path, empty = tmp_path / "m.gguf", given({"general.name": None})
    assert not converted(checkpoint("mixtral-4x"), path, "--metadata", empty)
    assert read_header(path).get("general.name") == "ckpt"


def test_the_keys_are_those_that_gguf_reads(tmp_path: Path) -> None:
    """Each changes the field that ours changes."""
    from gguf import Metadata

    path = tmp_path / "m.json"
    for key, field in KEYS.items():
        path.write_text(json.dumps({key: "x"}))
        assert getattr(Metadata.load(path), field) == "x", key


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"{", "given.json: not JSON"),
        (b'{"general.name": "\xff"}', "given.json: not JSON"),
        ([], "given.json: a JSON object with keys of general.* is expected, not list"),
        ({"general.nmae": "x"}, "'general.nmae' is no key that --metadata sets; did you mean "
         "general.name?"),
        ({"general.license": "mit"}, "; the licence is that of the model card"),
        ({"general.name": 3}, "general.name is 3, not text"),
        ({"general.name": "\ud800"}, r"general.name is '\ud800', not text"),
        ({"general.tags": "a"}, "general.tags is 'a', not a list of texts"),
        ({"general.languages": ["a", 1]}, "general.languages is ['a', 1], not a list of texts"),
        ({"general.base_models": [{"nmae": "x"}]}, "not a list of objects with texts, of name, "),
        ({"general.datasets": [{"name": 1}]}, "general.datasets is [{'name': 1}], not a list of "),
        ({"general.sampling.temp": True}, "general.sampling.temp is True, not a number"),
        ({"general.sampling.temp": 1e39}, "general.sampling.temp is 1e+39, not a number"),
        (b'{"general.sampling.temp": NaN}', "general.sampling.temp is nan, not a number"),
        ({"general.sampling.top_k": 2**31}, "general.sampling.top_k is 2147483648, not a whole"),
        ({"general.sampling.top_k": 1.5}, "general.sampling.top_k is 1.5, not a whole number"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_hold(
    value: Any,
    words: str,
    checkpoint: Callable[[str], Path],
    given: Callable[[Any], str],
    tmp_path: Path,
) -> None:
    said = converted(
        checkpoint("mixtral-4x"), tmp_path / "m.gguf", "--metadata", given(value)
    )  # fmt: skip
    assert words in said
    assert "\n" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["given.json"]


def test_no_file(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    none = str(tmp_path / "none.json")
    said = converted(checkpoint("mixtral-4x"), tmp_path / "m.gguf", "--metadata", none)
    assert said == f"{none}: no such file (--metadata)"
    said = converted(checkpoint("mixtral-4x"), tmp_path / "m.gguf", "--metadata", str(tmp_path))
    assert said.startswith(f"{tmp_path}: cannot be read")


def test_a_name_for_several_types(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    words = ["quantize", str(checkpoint("mixtral-4x")), "-t", "Q8_0,Q4_0"]
    result = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "n-{ftype}-{FTYPE}.gguf")])
    assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.iterdir()} == {"n-q8_0-Q8_0.gguf", "n-q4_0-Q4_0.gguf"}
