"""A release of a model that sees: the encoders' files beside the text's, in everything that goes
with them; what was killed is gone on with, and the Hub gets them too."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quantkit import api, errors
from quantkit.model.open import Reading
from quantkit.releases.card import render
from quantkit.releases.release import release
from tests.conftest import sha256
from tests.releases.sets import DENSE

Get = Callable[[str], Path]
READ = Reading(pre="qwen2")
STEM = "Qwen3-VL-4B-Instruct"
FILES = [f"{STEM}-Q8_0.gguf", f"mmproj-{STEM}-F16.gguf", f"mmproj-{STEM}-Q8_0.gguf"]


def test_everything_counts_the_encoders(checkpoint: Get, tmp_path: Path) -> None:
    made = release(checkpoint("qwen3vl-mmproj"), tmp_path, ["Q8_0"], reading=READ)
    assert [f.name for f in made.manifest.files] == FILES
    assert [row.type for row in made.rows] == ["Q8_0", "mmproj-F16", "mmproj-Q8_0"]
    golden = api.convert(
        checkpoint("qwen3vl-mmproj"), tmp_path / "one.gguf", outtype="f16",
        reading=Reading(options=api_options()),
    )  # fmt: skip
    assert golden is not None
    assert sha256(tmp_path / "one.gguf") == sha256(tmp_path / FILES[1])
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert f"--mmproj {FILES[1]}" in card
    assert f"| [{FILES[2]}](./{FILES[2]}) | mmproj-Q8_0 |" in card
    assert "sees with" in card
    assert (tmp_path / "Modelfile").read_text().startswith(
        f"FROM ./{FILES[0]}\nFROM ./{FILES[1]}\n"
    )  # fmt: skip
    page = (tmp_path / "index.html").read_text()
    assert all(name in page for name in FILES)
    model = f"-m {FILES[0]} --mmproj {FILES[1]} -c 4096"
    for text in (card, html.unescape(page)):
        assert f"llama-server {model}" in text
        assert f'llama-mtmd-cli {model} --image PICTURE.jpg -p "What is this?"' in text
        assert "--audio" not in text
    public = replace(made.manifest, repo="org/M")
    text = render(public, made.rows[:1], DENSE, {}, more=made.rows[1:])
    for row in made.rows:
        assert f"hf download org/M --include {row.name} --local-dir ." in text
    assert "llama-server -hf org/M:Q8_0 -c 4096\n" in text
    assert "llama.cpp gets it by itself" in text
    sums = (tmp_path / "SHA256SUMS").read_text()
    assert all(f"{sha256(tmp_path / name)}  {name}" in sums for name in FILES)
    for name in FILES[1:]:
        assert api.verify(tmp_path / name).good


def api_options() -> object:
    from quantkit.architectures.rules import ConversionOptions

    return ConversionOptions(mmproj=True)


def test_the_same_call_makes_what_is_lacking(checkpoint: Get, tmp_path: Path) -> None:
    source = checkpoint("qwen3vl-mmproj")
    release(source, tmp_path, ["Q8_0"], reading=READ)
    sums = {name: sha256(tmp_path / name) for name in FILES}
    (tmp_path / FILES[2]).unlink()
    spoiled = bytearray((tmp_path / FILES[1]).read_bytes())
    spoiled[-1000] ^= 1
    (tmp_path / FILES[1]).write_bytes(spoiled)
    made = release(source, tmp_path, ["Q8_0"], reading=READ)
    assert made.states == dict(zip(FILES, ["kept", "made again", "made"], strict=True))
    assert {name: sha256(tmp_path / name) for name in FILES} == sums
    assert set(release(source, tmp_path, ["Q8_0"], reading=READ).states.values()) == {"kept"}


def test_an_interrupted_release_goes_on(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.releases import release as module

    source, real, calls = checkpoint("qwen3vl-mmproj"), module.carry_out, []

    def once(job: object, *how: object) -> object:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(job, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "carry_out", once)
    with pytest.raises(KeyboardInterrupt):
        release(source, tmp_path, ["Q8_0"], reading=READ)
    assert (tmp_path / FILES[0]).exists()
    assert not (tmp_path / FILES[1]).exists()
    made = release(source, tmp_path, ["Q8_0"], reading=READ)
    assert (tmp_path / FILES[1]).exists()
    assert [f.name for f in made.manifest.files] == FILES


def test_shares_divide_the_encoders_too(checkpoint: Get, tmp_path: Path) -> None:
    source = checkpoint("qwen3vl-mmproj")
    parts = [tmp_path / str(i) for i in (1, 2, 3)]
    held = [
        [f.name for f in release(source, part, ["Q8_0"], reading=READ, share=(i, 3)).manifest.files]
        for i, part in enumerate(parts, 1)
    ]
    assert sorted(name for names in held for name in names) == sorted(FILES)


def test_a_checkpoint_without_its_encoder(broken: Callable[..., Path], tmp_path: Path) -> None:
    """The text's files are made, and a line says what is lacking."""
    from tests.damage import edit_tensors

    source = broken("qwen3vl-mmproj")

    def strip(tensors: dict[str, object]) -> None:
        for name in [name for name in tensors if "visual" in name]:
            del tensors[name]

    edit_tensors(source, strip)
    said: list[str] = []

    class Listening(api.Progress):
        def note(self, text: str) -> None:
            said.append(text)

    made = api.release(source, tmp_path / "out", "Q8_0", reading=READ, progress=Listening())
    assert [f.type for f in made.manifest.files] == ["Q8_0"]
    (line,) = [text for text in said if "no mmproj" in text]
    assert "is not in the checkpoint" in line
    assert "--mmproj" not in (tmp_path / "out" / "README.md").read_text()


def test_no_release_of_a_projector_alone(checkpoint: Get, tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    api.convert(checkpoint("qwen3vl-mmproj"), path, reading=Reading(options=api_options()))  # type: ignore[arg-type]
    with pytest.raises(errors.UnsupportedSource, match="a projector"):
        api.release(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_made(checkpoint: Get, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from quantkit.cli import app

    source = str(checkpoint("qwen3vl-mmproj"))
    args = ["convert", source, "--mmproj", "-o", str(tmp_path), "--outtype", "q8_0", "--json"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    (written,) = tmp_path.glob("*.gguf")
    assert written.name == FILES[2]
    assert json.loads(done.stdout)
    wrong = CliRunner().invoke(app, ["convert", source, "--mmproj", "--no-mtp"])
    assert wrong.exit_code != 0


def test_no_release_of_a_model_without_words(checkpoint: Get, tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedSource, match="has no vocabulary"):
        release(checkpoint("lfm25-audio-tokenizer"), tmp_path / "out", ["Q8_0"])
    assert not (tmp_path / "out").exists()
