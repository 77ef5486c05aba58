"""Releases brought to the Hub: to a server on 127.0.0.1 (`tests/hub_uploads.py`) that refuses, cuts
connections, and forgets nothing that arrived."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quantkit import errors
from quantkit.cli import app
from quantkit.hub import http, push
from quantkit.hub.push import HubTarget
from quantkit.jobs import Run
from quantkit.model.open import Reading
from quantkit.planning.build import Request
from quantkit.progress import Progress
from quantkit.recipes.choose import Overrides
from quantkit.releases import manifest
from quantkit.releases.previous import beside
from quantkit.releases.release import Release, release
from quantkit.releases.small_disk import release_in_parts
from quantkit.storage import os_files
from tests.fake_hub_uploads import CUT, UploadHub

# huggingface_hub's way to call its HTTP library, not ours
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
run = CliRunner().invoke
TOKEN = "hf_verysecret"
BESIDE = beside(2)  # of two types: no pictures
TYPES = ["Q4_K_M", "Q8_0"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    from huggingface_hub import constants, file_download

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(http, "TRIES", 3)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with UploadHub(TOKEN) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)  # read when it was imported
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for where in (constants, file_download):
            monkeypatch.setattr(where, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield server


@pytest.fixture(scope="module")
def made(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(checkpoint("mixtral-4x"), tmp_path_factory.mktemp("made") / "out", TYPES)


@pytest.fixture
def again(
    made: Release, checkpoint: Callable[[str], Path], tmp_path: Path
) -> Callable[..., Release]:
    """The same release, with nothing left to do but the push."""
    out = Path(shutil.copytree(made.directory, tmp_path / "out"))

    def call(target: HubTarget, run: Run = Run()) -> Release:  # noqa: B008
        return release(checkpoint("mixtral-4x"), out, TYPES, target=target, run=run)

    return call


def weights(made: Release) -> list[str]:
    return [f.name for f in made.manifest.files]


def test_encoders_are_pushed_with_the_text(
    checkpoint: Callable[[str], Path], tmp_path: Path, server: UploadHub
) -> None:
    reading = Reading(pre="qwen2")
    source, target = checkpoint("qwen3vl-mmproj"), HubTarget("org/see")
    made = release(source, tmp_path, ["Q8_0"], reading=reading, target=target)
    names = weights(made)
    assert [name for name in names if name.startswith("mmproj-")] == names[1:]
    assert len(names) == 3
    assert all(server.repos["org/see"][name] for name in names)
    parts = release_in_parts(
        source, tmp_path / "parts", ["Q8_0"], reading=reading, target=HubTarget("org/parts")
    )
    assert weights(parts) == names
    assert server.repos["org/parts"].keys() == server.repos["org/see"].keys()
    assert not list((tmp_path / "parts").glob("*.gguf"))


@pytest.mark.parametrize("commit", ["each", "all"])
def test_a_release_is_pushed_once(
    commit: str, again: Callable[..., Release], server: UploadHub
) -> None:
    pushed = again(HubTarget("org/new", True, commit))
    names = [*weights(pushed), *BESIDE]
    assert list(pushed.pushed) == names
    held = server.repos["org/new"]
    assert held.keys() == {".gitattributes", *names}
    for name in names:
        assert held[name] == (pushed.directory / name).read_bytes()
    assert server.private["org/new"]
    groups = [[name] for name in weights(pushed)] + [[*BESIDE]]
    assert [c for _, c in server.commits] == (groups if commit == "each" else [names])
    assert again(HubTarget("org/new")).pushed == []
    assert len(server.puts) == len(TYPES)


def test_the_card_knows_where_it_is(again: Callable[..., Release], server: UploadHub) -> None:
    card = (again(HubTarget("org/new")).directory / "README.md").read_text()
    assert "quantized_by: org" in card
    assert "llama-server -hf org/new:Q4_K_M" in card
    assert "ollama run hf.co/org/new:Q4_K_M" in card


@pytest.mark.parametrize("commit", ["each", "all"])
def test_a_push_that_is_cut_goes_on(
    commit: str, again: Callable[..., Release], server: UploadHub
) -> None:
    def fault(method: str, path: str) -> int | None:
        return CUT if method == "PUT" and server.puts else None

    server.fault = fault
    target = HubTarget("org/new", commit=commit)
    with pytest.raises(errors.PushInterrupted, match="the same command goes on") as e:
        again(target)
    assert "verysecret" not in str(e.value)
    assert len(server.puts) == 1
    assert len(server.commits) == (1 if commit == "each" else 0)
    server.fault = lambda method, path: None
    left = again(target).pushed
    assert len(left) == len(BESIDE) + (1 if commit == "each" else 2)
    assert len(server.puts) == 2
    assert len(server.repos["org/new"]) == 1 + len(TYPES) + len(BESIDE)


def test_a_failure_that_passes_is_not_noticed(
    again: Callable[..., Release], server: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TRIES", 8)
    seen: set[str] = set()

    def once(method: str, path: str) -> int | None:
        first = (method + path) not in seen
        seen.add(method + path)
        return [503, CUT][len(seen) % 2] if first else None

    server.fault = once
    assert len(again(HubTarget("org/new")).pushed) == len(TYPES) + len(BESIDE)


@pytest.mark.parametrize(
    "name", ["new", "org/sub/new", "org/new.git", "org/-new", "org/a..b", "o r/n"]
)
def test_a_name_that_the_hub_refuses(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path, server: UploadHub
) -> None:
    with pytest.raises(errors.PushRefused, match="no name on the Hub"):
        release(checkpoint("mixtral-4x"), tmp_path / "out", target=HubTarget(name))
    assert not (tmp_path / "out").exists()
    assert server.log == []


def test_without_a_token_nothing_begins(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    server: UploadHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(errors.NotLoggedIn, match="hf auth login"):
        release(checkpoint("mixtral-4x"), tmp_path / "out", target=HubTarget("org/new"))
    assert not (tmp_path / "out").exists()
    assert server.log == []


def test_a_log_says_how_far_it_is(again: Callable[..., Release], server: UploadHub) -> None:
    class Told(Progress):
        def update(self, step: str, done: int, total: int) -> None:
            steps.append((step, done, total))

    steps: list[tuple[str, int, int]] = []
    pushed = again(HubTarget("org/new"), Run(progress=Told()))
    steps = [step for step in steps if step[0] == "pushing"]
    total = sum((pushed.directory / name).stat().st_size for name in pushed.pushed)
    assert steps[:2] == [("pushing", 0, total), ("pushing", pushed.manifest.files[0].nbytes, total)]
    assert len(steps) == len(pushed.pushed)


def test_a_token_that_is_refused(
    again: Callable[..., Release], server: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(errors.NotLoggedIn, match="refused"):
        again(HubTarget("org/new"))


def test_an_organisation_that_is_closed(
    checkpoint: Callable[[str], Path], tmp_path: Path, server: UploadHub
) -> None:
    with pytest.raises(errors.PushForbidden, match="write access to other"):
        release(checkpoint("mixtral-4x"), tmp_path / "out", target=HubTarget("other/new"))
    assert not (tmp_path / "out").exists()


def test_a_card_that_the_hub_refuses(again: Callable[..., Release], server: UploadHub) -> None:
    server.refused_key = "library_name"
    with pytest.raises(errors.PushRefused, match="library_name"):
        again(HubTarget("org/new"))
    assert len(server.commits) == len(TYPES)  # the weights are there, the card can be mended


def test_a_dry_run_needs_no_token_and_changes_nothing(
    again: Callable[..., Release], server: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    would = again(HubTarget("org/new"), Run(dry=True))
    assert list(would.pushed)[:2] == weights(would)
    assert "README.md" in would.pushed
    assert server.repos == {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    again(HubTarget("org/new"))
    assert not set(weights(would)) & set(again(HubTarget("org/new"), Run(dry=True)).pushed)


def test_shares_are_pushed_by_many_and_joined_by_one(
    checkpoint: Callable[[str], Path], made: Release, tmp_path: Path, server: UploadHub
) -> None:
    source, target = checkpoint("mixtral-4x"), HubTarget("org/new")
    for i in (1, 2):
        part = release(source, tmp_path / f"parts/{i}", TYPES, target=target, share=(i, 2))
        assert list(part.pushed) == [weights(made)[i - 1]]
    for path in (tmp_path / "parts").rglob("*.gguf"):
        path.unlink()
    call = {"target": target, "join": [tmp_path / "parts"]}
    dry = release(source, tmp_path / "out", TYPES, run=Run(dry=True), **call)
    assert list(dry.pushed) == [*BESIDE]
    joined = release(source, tmp_path / "out", TYPES, **call)
    assert set(joined.states.values()) == {"on the Hub"}
    assert list(joined.pushed) == [*BESIDE]
    assert joined.manifest.files == made.manifest.files
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*BESIDE}
    lost = weights(made)[0]
    del server.repos["org/new"][lost]  # what is on record and nowhere is made
    again = release(source, tmp_path / "out", TYPES, **call)
    assert again.states[lost] == "made"
    assert list(again.pushed) == [lost]


def test_a_disk_that_is_smaller_than_the_release(
    checkpoint: Callable[[str], Path],
    made: Release,
    tmp_path: Path,
    server: UploadHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is made in parts; a run that is cut short goes on with those that are not on the Hub."""
    source, out = checkpoint("mixtral-4x"), tmp_path / "out"
    sizes = [f.nbytes for f in made.manifest.files]
    monkeypatch.setattr(os_files, "free_bytes", lambda directory: max(sizes))
    arguments = ["release", str(source), "-o", str(out), "--types", ",".join(TYPES)]
    arguments += ["--push", "org/new"]
    result = run(app, arguments)
    assert isinstance(result.exception, errors.DiskFull)
    whole, held = push.push, []

    def watched(target: HubTarget, files: Sequence[push.Upload], *rest: Any) -> list[str]:
        held.append([p.name for p in out.rglob("*.gguf")])
        if len(held) == 2:
            raise errors.PushInterrupted("org/new: cut")
        return whole(target, files, *rest)

    monkeypatch.setattr(push, "push", watched)
    result = run(app, [*arguments, "--discard"])
    assert isinstance(result.exception, errors.PushInterrupted)
    result = run(app, [*arguments, "--discard", "--json"], catch_exceptions=False)
    first, second = weights(made)
    assert held == [[first], [second], [second], [second], []]
    told = json.loads(result.stdout)
    assert told["pushed"] == [second, *BESIDE]
    assert [f["state"] for f in told["files"]] == ["on the Hub"] * 2
    assert {p.name for p in out.iterdir()} == {*BESIDE}
    found = manifest.read(out / "manifest.json")
    assert found is not None
    assert found.files == made.manifest.files
    again = run(app, [*arguments, "--discard", "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["pushed"] == []
    assert {p.name for p in out.iterdir()} == {*BESIDE}
    arguments[5] = ",".join([*TYPES, "Q6_K"])  # one more, and nothing else is made
    more = json.loads(run(app, [*arguments, "--discard", "--json"], catch_exceptions=False).stdout)
    assert [name for name in more["pushed"] if name.endswith(".gguf")] == [more["files"][2]["name"]]


@pytest.mark.parametrize("with_", [[], ["--push", "org/new", "--share", "1/2"]])
def test_discarding_is_for_what_is_pushed(with_: list[str], tmp_path: Path) -> None:
    result = run(app, ["release", "m", "-o", str(tmp_path), "--discard", *with_])
    assert result.exit_code == 2
    assert "--discard goes with --push" in result.stderr


def test_the_command(checkpoint: Callable[[str], Path], tmp_path: Path, server: UploadHub) -> None:
    arguments = ["release", str(checkpoint("mixtral-4x")), "-o", str(tmp_path / "out"), "--types"]
    arguments += ["Q8_0", "--push", "org/new", "--private", "--commit", "all", "--json"]
    result = run(app, arguments, catch_exceptions=False)
    told = json.loads(result.stdout)
    assert told["repo"] == "org/new"
    assert told["pushed"] == [told["files"][0]["name"], *BESIDE]
    assert server.private == {"org/new": True}


def test_a_type_is_added_to_what_is_public(
    checkpoint: Callable[[str], Path], made: Release, tmp_path: Path, server: UploadHub
) -> None:
    """From a directory that knows nothing of it, as a machine that was just made has."""
    source, target = checkpoint("mixtral-4x"), HubTarget("org/new")
    release(source, tmp_path / "first", TYPES, target=target)
    dry = release(source, tmp_path / "fresh", ["Q6_K"], target=target, run=Run(dry=True))
    assert list(dry.states.values()) == ["on the Hub", "to be made", "on the Hub"]
    added = release(source, tmp_path / "fresh", ["Q6_K"], target=target)
    (new,) = [name for name, state in added.states.items() if state == "made"]
    assert list(added.pushed) == [new, *(name for name in beside(3) if name != "Modelfile")]
    held = server.repos["org/new"]
    assert {*weights(made), new} < held.keys()
    for name in ("README.md", "index.html", "SHA256SUMS", "manifest.json"):
        text = held[name].decode()
        assert all(f.name in text for f in added.manifest.files), name
    assert [row.type for row in added.rows] == ["Q4_K_M", "Q6_K", "Q8_0"]
    local = release(source, tmp_path / "fresh", ["Q6_K"])  # nobody asks the Hub
    assert [f.type for f in local.manifest.files] == ["Q6_K"]
    assert [f.type for f in local.manifest.left] == ["Q4_K_M", "Q8_0"]
    assert "with --push org/new it is looked for there" in local.notes[0]
    again = release(source, tmp_path / "fresh", ["Q6_K"], target=target)
    assert again.manifest == added.manifest


def test_what_is_public_and_was_made_otherwise_is_made(
    checkpoint: Callable[[str], Path], tmp_path: Path, server: UploadHub
) -> None:
    source, target = checkpoint("mixtral-4x"), HubTarget("org/new")
    release(source, tmp_path / "first", TYPES, target=target)
    reading = Reading(experts_used=1)
    with pytest.raises(errors.OtherRelease, match=r"org/new holds .* read with other options"):
        release(source, tmp_path / "fresh", ["Q8_0"], target=target, reading=reading)
    otherwise = Request(Overrides(output_tensor_type="Q6_K"))
    again = release(source, tmp_path / "fresh", ["Q8_0"], target=target, request=otherwise)
    assert list(again.states.values()) == ["on the Hub", "made"]
    again = release(source, tmp_path / "third", ["Q8_0"], target=target, request=otherwise)
    assert list(again.states.values()) == ["on the Hub", "on the Hub"]
    changed = Path(shutil.copytree(source, tmp_path / source.name))
    (changed / "model.safetensors").touch()  # another source, and all that is public is asked for
    again = release(changed, tmp_path / "fourth", TYPES, target=target)
    assert list(again.states.values()) == ["made", "made"]


def test_a_type_is_dropped_in_public(
    checkpoint: Callable[[str], Path], made: Release, tmp_path: Path, server: UploadHub
) -> None:
    source, target = checkpoint("mixtral-4x"), HubTarget("org/new")
    release(source, tmp_path / "first", TYPES, target=target)
    gone, stays = weights(made)
    dropped = release(source, tmp_path / "fresh", [], drop=["Q4_K_M"], target=target)
    assert list(dropped.states.items()) == [(stays, "on the Hub")]
    assert server.repos["org/new"].keys() == {".gitattributes", stays, *BESIDE}
    assert gone not in server.repos["org/new"]["README.md"].decode()
    assert server.commits[-1] == (f"Remove {gone}", [gone])


def test_a_card_of_another_model_is_not_taken_away(
    checkpoint: Callable[[str], Path], tmp_path: Path, server: UploadHub
) -> None:
    target = HubTarget("org/new")
    release(checkpoint("mixtral-4x"), tmp_path / "first", TYPES, target=target)
    other = Path(shutil.copytree(checkpoint("mixtral-8x"), tmp_path / "other"))
    with pytest.raises(errors.OtherRelease, match=r"org/new holds a release of .*--force"):
        release(other, tmp_path / "second", ["Q6_K"], target=target)
    assert not (tmp_path / "second").exists()
    forced = release(other, tmp_path / "second", ["Q6_K"], target=target, run=Run(force=True))
    assert len(forced.manifest.files) == 1
    server.repos["org/new"]["manifest.json"] = b"of somebody else"
    assert release(other, tmp_path / "second", ["Q6_K"], target=target).pushed == ["manifest.json"]
