"""`general.*`: names, sizes, licence and base models, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from gguf import Metadata

from quantkit.errors import CorruptFile
from quantkit.gguf.key_values import KeyValueWriter
from quantkit.model.authorship import FIELDS
from quantkit.model.metadata import add_general
from quantkit.model.model import ModelTensor
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.golden import fingerprint
from tests.vocabularies import cases, write_files

CASES = [name for name, case in cases().items() if case["tensors"]]
README = "meta-llama3-4x8b-instruct-v2"


def general(directory: Path, tensors: list[Any]) -> dict[str, Any]:
    writer, files = KeyValueWriter("llama"), CheckpointFiles.local(directory)
    add_general(writer, files, [ModelTensor(n, tuple(s), "F32", ()) for n, s in tensors])
    return {e.key: fingerprint(e) for e in writer.entries if e.key != "general.architecture"}


@pytest.mark.parametrize("case", CASES)
def test_same_as_llama_cpp(case: str, tmp_path: Path) -> None:
    golden = {k: v for k, v in cases()[case]["kv"].items() if k.startswith("general.")}
    ours = general(write_files(case, tmp_path), cases()[case]["tensors"])
    assert list(ours.items()) == list(golden.items())


def card(tmp_path: Path, front: str) -> dict[str, Any]:
    directory = write_files(README, tmp_path)
    (directory / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    keys = general(directory, [])
    return {k.removeprefix("general."): v.get("value") for k, v in keys.items()}


def test_numbers_and_dates_where_text_belongs(tmp_path: Path) -> None:
    keys = card(tmp_path, "version: 1.5\nname: 7\ndescription: 2024-01-31\ntags: [1, a]")
    assert keys["version"] == "1.5"
    assert keys["name"] == "7"
    assert keys["description"] == "2024-01-31"
    assert keys["tags"] == ["1", "a"]


def test_what_gguf_leaves_out_of_texts(tmp_path: Path) -> None:
    """An empty text, 0, false and an empty list, whatever they stand for."""
    keys = card(tmp_path, "version: 0\nauthor: no\ndescription: []\nlicense_link: {}\nfinetune: ''")
    assert not {"version", "author", "description", "license.link", "finetune"} & keys.keys()
    assert "name" not in card(tmp_path, "name: no")


def test_true_and_false_are_numbers(tmp_path: Path) -> None:
    """Python's packing, in llama.cpp's converter as well."""
    directory = write_files(README, tmp_path)
    settings = {"temperature": True, "top_k": False, "min_p": 0}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    keys = general(directory, [])
    found = {k: keys[f"general.sampling.{k}"]["value"] for k in ("temp", "top_k", "min_p")}
    assert found == {"temp": 1.0, "top_k": 0, "min_p": 0.0}


def test_a_card_of_gigabytes(tmp_path: Path) -> None:
    """Its first lines are read, by gguf too; what follows may be anything."""
    directory = write_files(README, tmp_path)
    text = "---\nauthor: Ann\n---\n" + "word\n" * 10
    (directory / "README.md").write_text(text, encoding="utf-8")
    short = general(directory, [])
    with (directory / "README.md").open("r+b") as file:
        file.truncate(3 << 30)  # a hole: takes no room on the disk
        file.seek(-1, 2)
        file.write(b"\xff")
    files = CheckpointFiles.local(directory)
    assert files.text("README.md") == text
    assert general(directory, []) == short
    assert short["general.author"]["value"] == "Ann"


@pytest.mark.parametrize("front", ["", "- a list", "base_model: [3, null]"])
def test_gguf_says_nothing_of_its_own(
    front: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    card(tmp_path, front)
    assert capfd.readouterr() == ("", "")


def test_several_base_models(tmp_path: Path) -> None:
    keys = card(tmp_path, "base_model: [org/Some-7B, 'https://huggingface.co/a/Other-v2']")
    assert keys["base_model.count"] == 2
    assert keys["base_model.0.name"] == "Some 7B"
    assert keys["base_model.0.organization"] == "Org"
    assert keys["base_model.1.repo_url"] == "https://huggingface.co/a/Other-v2"


@pytest.mark.parametrize(
    ("front", "words"),
    [
        ("license: {a: 1}", r"README\.md: license is .*, not text"),
        ("version: [1]", r"README\.md: version is \[1\], not text"),
        ("name: [", r"README\.md: malformed YAML"),
        ("base_model: 3\ndatasets: {a: b}\nname: &", r"README\.md: malformed YAML"),
    ],
)
def test_malformed_card(front: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=words) as caught:
        card(tmp_path, front)
    assert "\n" not in str(caught.value)


def test_malformed_generation_config(tmp_path: Path) -> None:
    directory = write_files(README, tmp_path)
    path = directory / "generation_config.json"
    path.write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(CorruptFile, match=r"generation_config\.json: sampling_temp is 'hot'"):
        general(directory, [])
    path.write_text("[1]")
    with pytest.raises(CorruptFile, match=r"generation_config\.json: a JSON object"):
        general(directory, [])


def test_path_of_another_machine_is_not_a_name(tmp_path: Path) -> None:
    directory = write_files("meta-my-moe-merge", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "_name_or_path": "/a/b/c"}))
    assert general(directory, [])["general.name"]["value"] == "My_Moe_Merge"


def test_every_field_of_gguf_is_checked() -> None:
    """For what gguf's annotations say; a licence may be a list, which gguf joins."""
    hints = get_type_hints(Metadata)
    assert hints.keys() == FIELDS.keys()
    for name, kind in FIELDS.items():
        (hint,) = (h for h in get_args(hints[name]) if h is not NoneType)
        allowed = {get_origin(hint) or hint} | ({int} if hint is float else set())
        assert allowed == set(kind.types) - ({list} if name == "license" else set()), name
