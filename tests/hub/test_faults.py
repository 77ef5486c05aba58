"""A network that misbehaves: patience, and never another file than the one that was listed.

The server is `tests/hub.py`, on 127.0.0.1.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from quantkit import errors
from quantkit.hub import http, repository
from quantkit.hub.repository import Address
from quantkit.jobs import quantize
from quantkit.model.open import open_source
from quantkit.source.safetensors import GUESS
from tests.fake_hub import Fault, Hub, Request
from tests.fake_hub_models import MODEL, TYPES, altered, sums

Get = Callable[[str], Path]


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
    n: int,
    kind: str,
    fault: Fault,
    sharded: Path,
    local_sums: dict[str, str],
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    if fault.delay:
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fault, hit = every(n, kind, fault)
    assert sums(quantize(MODEL, TYPES, tmp_path / ".")) == local_sums
    assert hit[1] > 3


def test_the_listing_is_asked_for_again(
    sharded: Path, local_sums: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    failures = iter([Fault(status=503), Fault(cut=10), Fault(status=429)])
    hub.fault = lambda r: next(failures, None) if r.kind == "api" else None
    assert sums(quantize(MODEL, TYPES, tmp_path)) == local_sums
    assert [r.kind for r in hub.log].count("api") == 4


def test_addresses_that_expire(
    sharded: Path, local_sums: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    hub.uses = 3
    assert sums(quantize(MODEL, TYPES, tmp_path)) == local_sums


def whole(hub: Hub, name: str = "model-00001-of-00003.safetensors") -> repository.RemoteFile:
    with repository.snapshot(Address.parse(MODEL)) as snapshot:
        hub.log.clear()
        return snapshot.files[name]


def test_a_cut_is_resumed_where_it_was(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    hub.fault, _ = every(1, "blob", Fault(cut=50_000))
    data = repository.Reader(file).pread(490_000, 100)
    assert data == (sharded / file.name).read_bytes()[100:490_100]
    asked = [r.range for r in hub.log if r.kind == "blob" and r.range]
    won = [b[0] - a[0] for a, b in itertools.pairwise(asked)]
    assert all(50_000 - http.BLOCK <= n <= 50_000 for n in won)
    assert {end for _, end in asked} == {490_100}


def test_past_the_end(sharded: Path, hub: Hub) -> None:
    reader = repository.Reader(whole(hub))
    data = (sharded / reader.file.name).read_bytes()
    assert reader.pread(10, reader.size - 4) == data[-4:]
    assert reader.pread(10, reader.size) == b""
    assert reader.pread(0, 0) == b""


def test_a_server_that_asks_for_time_gets_it(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    once = iter([Fault(status=429, headers={"Retry-After": "1"})])
    hub.fault = lambda r: next(once, None)
    started = time.monotonic()
    repository.Reader(file).pread(10, 0)
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
            repository.Reader(file, stop).pread(10, 0)
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
    sharded: Path, local_sums: dict[str, str], hub: Hub, tmp_path: Path
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
    assert sums(quantize(MODEL, TYPES, tmp_path)) == local_sums
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
        repository.Reader(file).pread(10, 0)


def test_a_mirror_with_etags_of_its_own(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    hub.fault = lambda r: Fault(headers={"X-Linked-Etag": '"md5-of-something"'})
    data = (sharded / file.name).read_bytes()[:10]
    assert repository.Reader(file).pread(10, 0) == data


@pytest.mark.parametrize("where", ["bytes 5-14/{size}", "bytes */{size}", "nonsense"])
def test_another_part_than_that_asked_for(where: str, sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    told = {"Content-Range": where.format(size=file.size)}
    hub.fault = lambda r: (
        Fault(status=206, headers=told, body=b"x" * 10) if r.kind == "blob" else None
    )
    with pytest.raises(errors.SourceUnreachable, match="parts of files"):
        repository.Reader(file).pread(10, 0)


def test_a_server_that_sends_whole_files_only(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    data = (sharded / file.name).read_bytes()
    hub.fault = lambda r: Fault(status=200, body=data) if r.kind == "blob" else None
    with pytest.raises(errors.SourceUnreachable, match="parts of files"):
        repository.Reader(file).pread(10, 0)
    assert repository.Reader(file).pread(file.size, 0) == data


def test_more_than_was_asked_for(sharded: Path, hub: Hub) -> None:
    file = whole(hub)
    hub.fault = lambda r: Fault(body=b"x" * 99) if r.kind == "blob" else None
    assert repository.Reader(file).pread(10, 0) == b"x" * 10


def test_a_server_without_ranges_serves_small_files(
    checkpoint: Get, local_sums: dict[str, str], sharded: Path, hub: Hub
) -> None:
    text = (sharded / "config.json").read_bytes()
    hub.fault = lambda r: Fault(status=200, body=text) if r.name == "config.json" else None
    assert open_source(MODEL).arch == "llama"
