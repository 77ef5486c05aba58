"""Models on the Hub: the bytes of a local run, nothing on the disk, and patience with the network.

The server is `tests/hub.py`, on 127.0.0.1.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantkit import errors, remote
from quantkit import hub as http
from quantkit.checkpoint import Files, read_weights
from quantkit.convert import Run, convert, merge, open_source, quantize, split
from quantkit.inputs import AT_ONCE
from quantkit.plan import Plan
from quantkit.safetensors_file import GUESS
from quantkit.splits import Splits
from quantkit.verify import verify
from tests.checkpoints import write_safetensors
from tests.conftest import sha256
from tests.hub import Fault, Hub, Request

Get = Callable[[str], Path]
TYPES = ["Q4_K_M", "Q8_0"]
MODEL = "hf://org/ckpt"
TOKEN = "hf_verysecret"
SHARDED = "mixtral-4x-sharded"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 20)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def sharded(checkpoint: Get, hub: Hub) -> Path:
    """A local checkpoint of three shards that is MODEL on the Hub, too."""
    source = checkpoint(SHARDED)
    hub.publish("org/ckpt", source)
    return source


@pytest.fixture(scope="module")
def expected(checkpoint: Get, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a local run makes of it."""
    return sums(quantize(checkpoint(SHARDED), TYPES, tmp_path_factory.mktemp("local")))


def sums(plan: Plan) -> dict[str, str]:
    return {f.path.name: sha256(f.path) for f in plan.files}


def command(where: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "quantkit.cli", *arguments], cwd=where,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **env},
    )  # fmt: skip


def there(*parts: Path | str) -> Path:
    path = Path(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def altered(source: Path, target: Path) -> Path:
    """A copy with other signs in its last weights, and files of the same sizes."""
    shutil.copytree(source, target)
    shard = target / "model-00003-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    for i in range(1, 1024, 2):
        data[-i] ^= 0x80
    shard.write_bytes(data)
    return target


def every(n: int, kind: str, fault: Fault) -> tuple[Callable[[Request], Fault | None], list[int]]:
    """A fault for every n-th request of a kind, and the count of those that were hit."""
    hit = [0, 0]

    def decide(request: Request) -> Fault | None:
        if request.kind != kind:
            return None
        hit[0] += 1
        if hit[0] % n:
            return None
        hit[1] += 1
        return fault

    return decide, hit


# --- The same bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mixtral-4x", SHARDED, "mixtral-4x-tf5fused", "llama-dense"])
def test_the_bytes_of_a_local_run(case: str, checkpoint: Get, hub: Hub, tmp_path: Path) -> None:
    source = checkpoint(case)
    name = f"hf://some-org/{source.name}"
    hub.publish(f"some-org/{source.name}", source)
    on_disk: list[int] = []

    def watch(request: Request) -> None:
        files = (p for p in (tmp_path / "temporary").rglob("*") if p.is_file())
        on_disk.append(sum(p.stat().st_size for p in files))

    hub.fault = watch
    here, far = there(tmp_path, "here"), there(tmp_path, "far")
    assert sums(convert(name, far)) == sums(convert(source, here))
    assert sums(quantize(name, TYPES, far)) == sums(quantize(source, TYPES, here))

    weights = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    small = sum(p.stat().st_size for p in source.iterdir()) - weights
    assert 0 < max(on_disk) <= small < weights
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted(p.name for p in far.iterdir()) == sorted(p.name for p in here.iterdir())
    # once for the conversion, once for the quantization, and what the headers are guessed to be
    shards = len(list(source.glob("*.safetensors")))
    assert hub.bytes_of("blob") <= 2 * (weights + shards * GUESS)


@pytest.mark.parametrize(
    "case", ["qwen3vlmoe", "llama4", "gpt-oss", "gpt-oss-bf16", "deepseek-v3-fp8", "qwen3-gptq"]
)
def test_rows_that_are_made_of_others(case: str, checkpoint: Get, hub: Hub, tmp_path: Path) -> None:
    """Experts that are stored transposed, rows that alternate, weights beside their scales."""
    source = checkpoint(case)
    name = f"hf://org/{source.name}"
    hub.publish(f"org/{source.name}", source)
    here, far = there(tmp_path, "here"), there(tmp_path, "far")
    assert sums(convert(name, far)) == sums(convert(source, here))
    requests = [r.kind for r in hub.log].count("blob")
    tensors = sum(len(read_weights(p)) for p in source.glob("*.safetensors"))
    assert requests < 20 * tensors


def test_a_file_is_verified_against_the_hub(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    path = quantize(sharded, ["Q4_K_M"], tmp_path).files[0].path
    found = verify(path, MODEL)
    assert found.good
    assert found.proven[-1] == "every tensor is byte for byte what its format gives"
    assert found.tensors == verify(path, sharded).tensors


def test_the_token_goes_to_the_hub_only(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    convert(MODEL, tmp_path)
    for request in hub.log:
        sent = request.headers.get("authorization")
        assert sent == (None if request.kind == "blob" else f"Bearer {TOKEN}"), request
        assert request.kind == "api" or request.range is not None


def test_connections_are_kept(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    quantize(MODEL, TYPES, tmp_path)
    blobs = [r for r in hub.log if r.kind == "blob"]
    assert len(blobs) > 2 * hub.connections / 3
    asked_where = [r for r in hub.log if r.kind == "resolve" and r.name.endswith(".safetensors")]
    assert len(asked_where) == 3 + 3  # once a shard for the headers, once for the weights


def test_a_dry_run_reads_headers_only(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    plan = quantize(MODEL, TYPES, tmp_path, run=Run(dry=True))
    assert plan.source_bytes > 1_000_000
    assert hub.bytes_of("blob") <= 3 * GUESS
    assert [r.kind for r in hub.log].count("blob") == 3
    assert plan.workers(2) == 2 + AT_ONCE
    assert plan.stages(2) == (AT_ONCE, 2, 1)
    assert plan.memory(2) > quantize(sharded, TYPES, tmp_path, run=Run(dry=True)).memory(2)


def test_the_command_line(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    """`hf://` survives the options, in a process of its own."""
    run = command(tmp_path, "convert", MODEL, "-o", "far.gguf")
    assert run.returncode == 0, run.stderr
    convert(sharded, tmp_path / "here.gguf")
    assert sha256(tmp_path / "far.gguf") == sha256(tmp_path / "here.gguf")


def test_a_revision_is_pinned_once(
    sharded: Path, expected: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    """The branch moves on while the run is under way."""
    other = altered(sharded, tmp_path / "other")
    first = hub.publish("org/ckpt", sharded)

    def move(request: Request) -> None:
        if request.kind == "blob" and not moved:
            moved.append(hub.publish("org/ckpt", other))

    moved: list[str] = []
    hub.fault = move
    assert sums(quantize(MODEL, TYPES, there(tmp_path, "a"))) == expected
    assert moved
    assert [r.kind for r in hub.log].count("api") == 1
    assert sums(quantize(MODEL, TYPES, there(tmp_path, "b"))) != expected
    assert sums(quantize(f"{MODEL}@{first}", TYPES, there(tmp_path, "c"))) == expected
    hub.publish("org/ckpt", sharded, "refs/pr/7")
    assert sums(quantize(f"{MODEL}@refs/pr/7", TYPES, there(tmp_path, "d"))) == expected
    file = next(t.path for t in open_source(MODEL).sources.values())
    assert isinstance(file, remote.RemoteFile)
    assert remote.pinned(MODEL, file) == f"{MODEL}@{moved[0]}"
    assert remote.pinned(f"{MODEL}@main/a/b.gguf", file) == f"{MODEL}@{moved[0]}/a/b.gguf"


def test_columns_are_fetched_by_the_matrix(hub: Hub, tmp_path: Path) -> None:
    """Experts that are stored the other way round: pieces of every row, in one request."""
    x = np.arange(4 * 32 * 48, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(4, 32, 48)
    directory = there(tmp_path, "columns")
    write_safetensors(directory / "model.safetensors", {"x": ("BF16", [4, 32, 48], x.tobytes())})
    hub.publish("org/columns", directory)
    with remote.snapshot("hf://org/columns") as found:
        (t,) = read_weights(found.files["model.safetensors"])
    before = len(hub.log)
    with Files([t.path]) as files:
        for matrix, column in itertools.product(range(4), range(0, 48, 16)):
            got = files.read_columns(t, 32 * matrix, 32, column, 16)
            assert np.array_equal(got, x[matrix, :, column : column + 16])
    assert [r.kind for r in hub.log[before:]].count("blob") == 4


def test_gguf_files(checkpoint: Get, hub: Hub, tmp_path: Path) -> None:
    """One file, a set of splits, and cutting and joining them."""
    model = tmp_path / "model-BF16.gguf"
    convert(checkpoint("mixtral-4x"), model)
    repo = there(tmp_path, "repo", "deep")
    pieces = split(model, repo / "model-BF16.gguf", Splits(max_tensors=12))
    shutil.copy(model, repo.parent)
    hub.publish("org/gguf", repo.parent)
    here = sums(quantize(model, TYPES, there(tmp_path, "here")))
    assert list(here) == [f"model-{name}.gguf" for name in TYPES]
    assert sums(quantize("hf://org/gguf/model-BF16.gguf", TYPES, there(tmp_path, "far"))) == here
    first = f"hf://org/gguf/deep/{pieces.files[0].path.name}"
    assert sums(quantize(first, TYPES, there(tmp_path, "pieces"))) == here
    merge(first, tmp_path / "joined.gguf")
    assert sha256(tmp_path / "joined.gguf") == sha256(model)
    cut = split("hf://org/gguf/model-BF16.gguf", there(tmp_path, "cut") / "model-BF16.gguf",
                Splits(max_tensors=12))  # fmt: skip
    assert sums(cut) == sums(pieces)
    (repo / pieces.files[1].path.name).unlink()
    hub.publish("org/gguf", repo.parent)
    with pytest.raises(errors.ShardMissing, match="00002-of"):
        quantize(first, TYPES, tmp_path)


# --- A network that misbehaves ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "kind", "fault"),
    [
        (2, "blob", Fault(cut=1000)),
        (2, "blob", Fault(cut=0)),
        (3, "blob", Fault(status=500)),
        (3, "blob", Fault(status=503, headers={"Retry-After": "0"})),
        (2, "resolve", Fault(status=429, headers={"Retry-After": "0"})),
        (2, "resolve", Fault(status=504)),
        (5, "blob", Fault(status=403)),
        (7, "blob", Fault(delay=0.6)),
    ],
    ids=lambda value: str(value) if not isinstance(value, Fault) else "",
)
def test_what_passes(
    n: int, kind: str, fault: Fault, sharded: Path, expected: dict[str, str], hub: Hub,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from huggingface_hub import constants

    if fault.delay:
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fault, hit = every(n, kind, fault)
    assert sums(quantize(MODEL, TYPES, tmp_path / ".")) == expected
    assert hit[1] > 3


def test_the_listing_is_asked_for_again(
    sharded: Path, expected: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    failures = iter([Fault(status=503), Fault(cut=10), Fault(status=429)])
    hub.fault = lambda r: next(failures, None) if r.kind == "api" else None
    assert sums(quantize(MODEL, TYPES, tmp_path)) == expected
    assert [r.kind for r in hub.log].count("api") == 4


def test_addresses_that_expire(
    sharded: Path, expected: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    hub.uses = 3
    assert sums(quantize(MODEL, TYPES, tmp_path)) == expected


def whole(hub: Hub, name: str = "model-00001-of-00003.safetensors") -> remote.RemoteFile:
    with remote.snapshot(MODEL) as found:
        hub.log.clear()
        return found.files[name]


def test_a_cut_is_resumed_where_it_was(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    hub.fault, _ = every(1, "blob", Fault(cut=50_000))
    data = remote.Reader(file).pread(490_000, 100)
    assert data == (sharded / file.name).read_bytes()[100:490_100]
    asked = [r.range for r in hub.log if r.kind == "blob" and r.range]
    won = [b[0] - a[0] for a, b in itertools.pairwise(asked)]
    assert all(50_000 - http.BLOCK <= n <= 50_000 for n in won)
    assert {end for _, end in asked} == {490_100}


def test_past_the_end(sharded: Path, hub: Hub) -> None:
    reader = remote.Reader(whole(hub))
    data = (sharded / reader.file.name).read_bytes()
    assert reader.pread(10, reader.size - 4) == data[-4:]
    assert reader.pread(10, reader.size) == b""
    assert reader.pread(0, 0) == b""


def test_a_server_that_asks_for_time_gets_it(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    once = iter([Fault(status=429, headers={"Retry-After": "1"})])
    hub.fault = lambda r: next(once, None)
    started = time.monotonic()
    remote.Reader(file).pread(10, 0)
    assert time.monotonic() - started >= 1


def test_ways_to_ask_for_time() -> None:
    assert http._asked_wait({"Retry-After": " 17 "}) == 17
    date = formatdate(time.time() + 60, usegmt=True)
    assert 50 < (http._asked_wait({"Retry-After": date}) or 0) <= 60
    assert http._asked_wait({"Retry-After": formatdate(0, usegmt=True)}) == 0
    assert http._asked_wait({"RateLimit": '"resolvers";r=0;t=55'}) == 55
    assert http._asked_wait({"RateLimit": '"resolvers";r=9;t=55'}) is None
    assert http._asked_wait({"Retry-After": "soon"}) is None


def test_waiting_ends_when_the_run_does(sharded: Path, hub: Hub) -> None:
    file, stop, caught = whole(hub), threading.Event(), []
    hub.fault = lambda r: Fault(status=429, headers={"Retry-After": "200"})

    def read() -> None:
        try:
            remote.Reader(file, stop).pread(10, 0)
        except errors.SourceUnreachable as e:
            caught.append(str(e))

    thread = threading.Thread(target=read)
    thread.start()
    while not hub.log:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert "stopped" in caught[0]


def test_an_error_does_not_wait_for_those_who_wait(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    count = itertools.count()

    def decide(request: Request) -> Fault | None:
        if request.kind != "blob" or (n := next(count)) < 20:
            return None
        return Fault(status=416) if n == 30 else Fault(status=429, headers={"Retry-After": "200"})

    hub.fault = decide
    started = time.monotonic()
    with pytest.raises(errors.SourceChanged):
        quantize(MODEL, TYPES, tmp_path)
    assert time.monotonic() - started < 30


def test_one_that_stays_down_is_given_up_and_gone_on_with(
    sharded: Path, expected: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    """The same command, later, goes on where the run stopped."""
    count = itertools.count()
    hub.fault = lambda r: Fault(status=502) if r.kind == "blob" and next(count) > 40 else None
    with pytest.raises(errors.SourceUnreachable, match=f"answers 502, {http.TRIES} times"):
        quantize(MODEL, TYPES, tmp_path)
    left = {f"ckpt-{name}.gguf.{ending}" for name in TYPES for ending in ("partial", "journal")}
    assert {p.name for p in tmp_path.glob("*.gguf*")} == left
    hub.fault = lambda r: None
    before = len(hub.log)
    assert sums(quantize(MODEL, TYPES, tmp_path)) == expected
    fetched = sum(r.range[1] - r.range[0] for r in hub.log[before:] if r.kind == "blob" and r.range)
    weights = sum(p.stat().st_size for p in sharded.glob("*.safetensors"))
    assert fetched < weights + 3 * GUESS


def test_another_commit_is_not_gone_on_with(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    count = itertools.count()
    hub.fault = lambda r: Fault(status=502) if r.kind == "blob" and next(count) > 40 else None
    with pytest.raises(errors.SourceUnreachable):
        quantize(MODEL, TYPES, tmp_path)
    hub.publish("org/ckpt", altered(sharded, tmp_path / "other"))
    hub.fault = lambda r: None
    with pytest.raises(errors.JournalMismatch, match="another source"):
        quantize(MODEL, TYPES, tmp_path)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(headers={"ETag": '"' + "f" * 64 + '"'}),
        Fault(headers={"Content-Range": "bytes 0-1/77"}),
        Fault(status=416, headers={"Content-Range": "bytes */77"}),
    ],
    ids=["etag", "length", "shorter"],
)
def test_a_file_that_changes(fault: Fault, sharded: Path, hub: Hub, tmp_path: Path) -> None:
    count = itertools.count()
    hub.fault = lambda r: fault if r.kind == "blob" and next(count) > 40 else None
    with pytest.raises(errors.SourceChanged, match=r"model-0000.*run it again"):
        quantize(MODEL, TYPES, tmp_path)


def test_a_file_that_is_not_the_one_that_was_listed(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    hub.fault = lambda r: (
        Fault(headers={"X-Linked-Etag": '"' + "0" * 64 + '"'}) if r.kind == "resolve" else None
    )
    with pytest.raises(errors.SourceChanged, match="etag"):
        remote.Reader(file).pread(10, 0)


def test_a_mirror_with_etags_of_its_own(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    hub.fault = lambda r: Fault(headers={"X-Linked-Etag": '"md5-of-something"'})
    data = (sharded / file.name).read_bytes()[:10]
    assert remote.Reader(file).pread(10, 0) == data


@pytest.mark.parametrize("where", ["bytes 5-14/{size}", "bytes */{size}", "nonsense"])
def test_another_part_than_that_asked_for(where: str, sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    told = {"Content-Range": where.format(size=file.size)}
    hub.fault = lambda r: (
        Fault(status=206, headers=told, body=b"x" * 10) if r.kind == "blob" else None
    )
    with pytest.raises(errors.SourceUnreachable, match="parts of files"):
        remote.Reader(file).pread(10, 0)


def test_a_server_that_sends_whole_files_only(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    data = (sharded / file.name).read_bytes()
    hub.fault = lambda r: Fault(status=200, body=data) if r.kind == "blob" else None
    with pytest.raises(errors.SourceUnreachable, match="parts of files"):
        remote.Reader(file).pread(10, 0)
    assert remote.Reader(file).pread(file.size, 0) == data


def test_more_than_was_asked_for(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    hub.fault = lambda r: Fault(body=b"x" * 99) if r.kind == "blob" else None
    assert remote.Reader(file).pread(10, 0) == b"x" * 10


def test_a_server_without_ranges_serves_small_files(
    checkpoint: Get, expected: dict[str, str], sharded: Path, hub: Hub
) -> None:
    text = (sharded / "config.json").read_bytes()
    hub.fault = lambda r: Fault(status=200, body=text) if r.name == "config.json" else None
    assert open_source(MODEL).arch == "llama"


# --- Errors by name ---------------------------------------------------------------------------


def says(error: type[errors.QuantkitError], words: str, source: str, out: Path) -> None:
    """Both jobs raise `error` with `words` in one line, and no secret in it."""
    for job in (lambda: quantize(source, TYPES, out), lambda: convert(source, out)):
        with pytest.raises(errors.QuantkitError) as caught:
            job()
        said = str(caught.value)
        assert type(caught.value) is error, said
        for word in words.split(" & "):
            assert word in said, said
        assert "\n" not in said
        assert TOKEN not in said
        assert "key=" not in said
    assert not any(out.glob("*.gguf*"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf://org", "hf://ORG/MODEL"),
        ("hf://", "hf://ORG/MODEL"),
        ("hf://../..", "hf://ORG/MODEL"),
        ("hf://org/a--b..c", "not a name"),
        ("hf://org/nothing", "hf://org/nothing & no such model & private & HF_TOKEN"),
        (f"{MODEL}@nothing", "no such revision"),
        (f"{MODEL}/nothing.gguf", "no such GGUF file"),
        (f"{MODEL}/config.json", "no such GGUF file"),
    ],
)
def test_no_such_source(source: str, words: str, sharded: Path, hub: Hub, tmp_path: Path) -> None:
    if source.count("/") > 3:  # a file: only quantize takes one
        with pytest.raises(errors.SourceNotFound, match=words):
            quantize(source, TYPES, tmp_path)
        with pytest.raises(errors.UnsupportedSource, match="one file"):
            convert(source, tmp_path)
    else:
        says(errors.SourceNotFound, words, source, tmp_path)


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}
REFUSED = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    ("kind", "fault", "error", "words"),
    [
        ("resolve", Fault(status=403, headers=GATED), errors.SourceForbidden,
         "gated; accept its terms at 127.0.0.1/org/ckpt & hf auth login"),
        ("api", Fault(status=403, headers=GATED), errors.SourceForbidden, "gated"),
        ("api", Fault(status=401), errors.SourceNotFound, "private & hf auth login"),
        ("api", Fault(status=401, headers=REFUSED), errors.SourceForbidden, "token was refused"),
        ("resolve", Fault(status=401, headers=REFUSED), errors.SourceForbidden, "refused"),
        ("resolve", Fault(status=403), errors.SourceForbidden, "may not read it"),
        ("blob", Fault(status=403), errors.SourceUnreachable, "store answers 403, 8 times"),
        ("resolve", Fault(status=404), errors.ShardMissing, "not there any more"),
        ("api", Fault(status=418), errors.SourceUnreachable, "answers 418"),
        ("resolve", Fault(status=418), errors.SourceUnreachable, "answers 418"),
        ("api", Fault(status=500), errors.SourceUnreachable, "answers 500, 8 times"),
        ("api", Fault(body=b"<html>"), errors.SourceUnreachable, "does not answer as the Hub"),
        ("api", Fault(body=b"[]"), errors.SourceUnreachable, "does not answer as the Hub"),
        ("api", Fault(body=b'{"id": "org/ckpt", "sha": "1", "siblings": [{"rfilename": "x"}]}'),
         errors.SourceUnreachable, "sizes"),
    ],
)  # fmt: skip
def test_answers_that_are_none(
    kind: str, fault: Fault, error: type[errors.QuantkitError], words: str, sharded: Path,
    hub: Hub, tmp_path: Path,
) -> None:  # fmt: skip
    hub.fault = lambda r: fault if r.kind == kind else None
    says(error, words, MODEL, tmp_path)


def test_nobody_there(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    says(errors.SourceUnreachable, "no answer", MODEL, tmp_path)


def test_offline(hub: Hub, tmp_path: Path) -> None:
    run = command(tmp_path, "convert", MODEL, HF_HUB_OFFLINE="1")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {MODEL}: HF_HUB_OFFLINE is set")
    assert len(run.stderr.splitlines()) == 1
    assert hub.log == []


def test_a_shard_missing_on_the_hub(broken: Callable[..., Path], hub: Hub, tmp_path: Path) -> None:
    source = broken(SHARDED)
    (source / "model-00002-of-00003.safetensors").unlink()
    hub.publish("org/ckpt", source)
    says(errors.ShardMissing, f"{MODEL}: 1 of 3 & model-00002", MODEL, there(tmp_path, "out"))


def test_a_shard_that_is_no_safetensors_file(
    broken: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    source = broken(SHARDED)
    shard = source / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    hub.publish("org/ckpt", source)
    says(errors.CorruptFile, "model-00002 & not a whole", MODEL, there(tmp_path, "out"))


def test_errors_of_small_files_name_the_model(
    broken: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    source = broken(SHARDED)
    (source / "config.json").write_text("{")
    hub.publish("org/ckpt", source)
    says(errors.CorruptFile, f"{MODEL}/config.json: not JSON", MODEL, there(tmp_path, "out"))
    (source / "config.json").unlink()
    hub.publish("org/ckpt", source)
    says(errors.SourceNotFound, f"{MODEL}: no config.json", MODEL, tmp_path / "out")
    (source / "m-Q8_0.gguf").write_bytes(b"GGUF")
    hub.publish("org/ckpt", source)
    says(errors.SourceNotFound, f"GGUF files: {MODEL}/m-Q8_0.gguf", MODEL, tmp_path / "out")


@pytest.mark.parametrize(
    ("path", "small"),
    [
        ("config.json", True), ("tokenizer.json", True), ("tokenizer.model", True),
        ("model.safetensors.index.json", True), ("chat_template.jinja", True),
        ("additional_chat_templates/rag.jinja", True), ("README.md", True),
        ("model-00001-of-00002.safetensors", False), ("pytorch_model.bin", False),
        ("onnx/config.json", False), ("../config.json", False), ("..\\config.json", False),
        ("C:config.json", False), ("additional_chat_templates/../../x.jinja", False),
        ("evals.json", False),
    ],
)  # fmt: skip
def test_small_files(path: str, small: bool) -> None:
    """What is fetched, and that nothing gets out of the directory."""
    assert remote._is_small(path) is small
