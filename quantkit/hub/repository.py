"""Models on the Hugging Face Hub, read where they are: `hf://ORG/MODEL[@REVISION][/FILE.gguf]`.

The revision is pinned to a commit once. Small files (config, tokenizer, model card) go to a
temporary directory; weights are read by HTTP ranges and never touch the disk.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from quantkit.errors import (
    SourceChanged,
    SourceNotFound,
    SourceUnreachable,
    UnsupportedSource,
)
from quantkit.hub import http
from quantkit.hub.http import SCHEME, Again, Answer

# what stands beside the weights; other files are not fetched
SMALL = (
    "*config*.json", "*token*.json", "*.index.json", "chat_template.*", "vocab*.json",
    "merges.txt", "*.model", "*.tiktoken", "README.md", "additional_chat_templates/*.jinja",
    "params.json", "tekken.json", "tokenizer.model.v*", "vocab.txt", "modules.json",
    "tokenizer.jsonl", "rwkv_vocab_*.txt",
)  # fmt: skip

# what sentence-transformers runs on top; what tells OpenJev from the Qwen3.5 that it is made of;
# Laya's encoder and vocabulary; what MiMo hears with
_MODULE = re.compile(
    r"([0-9]+_[A-Za-z]+|encoder|audio_tokenizer)/config\.json|helper/shim\.py"
    r"|tokenizer/(merges\.txt|(vocab|tokenizer(_config)?|special_tokens_map|added_tokens)\.json)"
)

# weights of such parts, in folders of their own
_PART = re.compile(r"([0-9]+_[A-Za-z]+|audio_tokenizer)/model\.safetensors")

MOST_SMALL = 256  # of them
LARGEST_SMALL = 1 << 28  # bytes of one
CARD, LARGEST_CARD = "README.md", 1 << 24  # bytes of a model card, of which the rest is not read
LARGEST_LISTING = 1 << 26  # bytes; 100,000 files need some 30 MB
LONGEST_LISTING = 300  # seconds
AT_ONCE = 8

_NAME = r"[\w-][\w.-]*"
_SOURCE = re.compile(
    rf"hf://(?P<repo>{_NAME}/{_NAME})(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(/(?P<file>.+))?"
)


@dataclass(frozen=True, order=True)
class RemoteFile:
    """A file of a model at one commit. `etag` is its sha256, or git's sha1 of a small file.

    It stands where a `Path` stands: it has its `name`, `suffix` and `parent`, and prints.
    """

    repo: str
    commit: str
    path: str
    size: int  # bytes
    etag: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.commit[:12]}/{self.path}"

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The name's ending, its dot included."""
        return os.path.splitext(self.path)[1]

    @property
    def parent(self) -> str:
        """Where it lies, in words."""
        return str(self).rpartition("/")[0]

    @property
    def fingerprint(self) -> str:
        """What tells it from a file that was changed since."""
        return f"{self.size} {self.etag}"


@dataclass(frozen=True)
class Snapshot:
    """A model at one commit: its small files in a directory of its name, all files by name (those
    of parts in folders of their own: by path).

    With a GGUF `file`, `files` are those that lie beside it and the directory is empty.
    """

    where: str  # hf://ORG/MODEL: what messages name in place of the directory
    directory: Path  # a temporary one
    files: Mapping[str, RemoteFile]
    file: RemoteFile | None = None


@dataclass(frozen=True)
class Address:
    """A model on the Hub, or one file of it: `hf://ORG/MODEL[@REVISION][/FILE.gguf]`."""

    repo: str  # ORG/MODEL
    revision: str | None = None  # a branch, tag or commit as it is written in the address
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises SourceNotFound for what is no such address."""
        match = _SOURCE.fullmatch(text)
        if not match:
            raise SourceNotFound(
                f"{text}: not a model on the Hub; hf://ORG/MODEL, hf://ORG/MODEL@REVISION or "
                "hf://ORG/MODEL/FILE.gguf is expected"
            )
        return cls(match["repo"], match["revision"], match["file"])

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}" + (f"/{self.file}" if self.file else "")

    def at(self, commit: str) -> Address:
        """The same at a commit, whatever the branch does meanwhile."""
        return replace(self, revision=commit)

    def listing(self) -> list[RemoteFile]:
        """Every file of the model, at the commit that its revision (default: main) is at now.
        Raises SourceError."""
        return _listing(self.repo, unquote(self.revision or "") or None)


@contextmanager
def snapshot(source: Address) -> Iterator[Snapshot]:
    """The model at an address. Its directory is there until the context ends.

    Raises SourceNotFound, SourceForbidden, SourceUnreachable, SourceChanged.
    """
    repo, path, files = source.repo, source.file, source.listing()
    gguf = sorted(f.path for f in files if f.suffix == ".gguf")
    hint = f"; it holds {len(gguf)} GGUF files: {SCHEME}{repo}/{gguf[0]}" if gguf else ""
    file = next((f for f in files if f.path == path and path in gguf), None)
    if path is not None and file is None:
        raise SourceNotFound(f"{source}: no such GGUF file in the model{hint}")
    if file is None and hint and all(f.path != "config.json" for f in files):
        raise SourceNotFound(f"{source}: no config.json in it{hint}")
    folder = file.path.rpartition("/")[0] if file else ""
    beside = {f.name: f for f in files if f.path.rpartition("/")[0] == folder}
    if file is None:
        beside |= {f.path: f for f in files if _PART.fullmatch(f.path)}
    with TemporaryDirectory(prefix="quantkit-") as parent:
        directory = Path(parent).resolve() / repo.partition("/")[2]
        directory.mkdir()
        _fetch([f for f in files if _is_small(f.path)] if file is None else [], directory)
        yield Snapshot(f"{SCHEME}{repo}", directory, beside, file)


def _fetch(files: Sequence[RemoteFile], directory: Path) -> None:
    """Small files into a directory, several at once. Raises UnsupportedSource, SourceError."""
    if len(files) > MOST_SMALL:
        raise UnsupportedSource(
            f"{files[0].parent}: {len(files)} small files; {MOST_SMALL} are read"
        )

    def fetch(f: RemoteFile) -> None:
        data = _whole(f)
        (directory / f.path).parent.mkdir(exist_ok=True)
        (directory / f.path).write_bytes(data)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fetch, files))


def _whole(f: RemoteFile) -> bytes:
    """The bytes of a small file, and of a long model card those that are read. Raises
    UnsupportedSource, SourceError."""
    size = min(f.size, LARGEST_CARD + 1) if f.path == CARD else f.size
    if size > LARGEST_SMALL:
        raise UnsupportedSource(f"{f}: {size} bytes; {LARGEST_SMALL} of such a file are read")
    return bytes(Reader(f).pread(size, 0))


def read_small(source: Address, name: str) -> bytes | None:
    """A small file of the model at an address, or None if it has no such file. Raises
    SourceError."""
    file = next((f for f in source.listing() if f.path == name), None)
    return None if file is None else _whole(file)


def _same_server(a: str, b: str) -> bool:
    return urlsplit(a)[:2] == urlsplit(b)[:2]


def _is_small(path: str) -> bool:
    if _MODULE.fullmatch(path):
        return True
    name = path.removeprefix("additional_chat_templates/")
    plain = name == PureWindowsPath(name).name  # no way out of the directory, on any system
    return plain and any(fnmatchcase(path, pattern) for pattern in SMALL)


def _listing(repo: str, revision: str | None) -> list[RemoteFile]:
    """Every file of a model at the commit that `revision` (default: main) is at now."""
    where = f"{SCHEME}{repo}" + (f"@{revision}" if revision else "")
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    url = f"{http.endpoint()}/api/models/{repo}{at}?blobs=true"

    def ask() -> bytes:
        with http.answers(where):
            http.check_name(repo)
            with http.get(url, http.headers() | {"Accept-Encoding": "identity"}) as answer:
                if answer.status >= 300:
                    raise http.refusal(where, answer.status, answer.headers)
                return _listed(where, answer)

    try:
        info = json.loads(http.patiently(where, ask))
    except (ValueError, RecursionError):
        raise http.strange(where) from None
    if not isinstance(info, dict) or not isinstance(info.get("siblings", []), list):
        raise http.strange(where)
    commit, siblings = info.get("sha"), info.get("siblings", [])
    if any(not isinstance(entry, dict) for entry in siblings):
        raise http.strange(where)
    if commit is None or any(entry.get("size") is None for entry in siblings):
        raise SourceUnreachable(f"{where}: the server does not tell the sizes of its files")
    files = []
    for entry in siblings:
        lfs = entry.get("lfs")
        etag: Any = lfs.get("sha256") if isinstance(lfs, dict) else entry.get("blobId") or ""
        path, size = entry.get("rfilename"), entry["size"]
        if not all(isinstance(text, str) for text in (commit, path, etag)) or type(size) is not int:
            raise http.strange(where)
        if not path or "\0" in path or size < 0:
            raise http.strange(where)
        files.append(RemoteFile(repo, commit, path, size, etag))
    return files


def _listed(where: str, answer: Answer) -> bytes:
    """The body of a listing. Raises SourceUnreachable: it does not end."""
    data, end = bytearray(), time.monotonic() + LONGEST_LISTING
    for part in answer.parts:
        data += part
        if len(data) > LARGEST_LISTING or time.monotonic() > end:
            raise SourceUnreachable(
                f"{where}: the server's list of files does not end: {len(data)} bytes came; "
                f"{LARGEST_LISTING}, within {LONGEST_LISTING} seconds, are read"
            )
    return bytes(data)


class Reader:
    """Reads ranges of one file; any number of threads may.

    The Hub sends a reader on to where the bytes are, under an address that is good for a while.
    That address is kept, so that a range is one request, and asked for again when it expires.
    """

    def __init__(self, file: RemoteFile, stop: threading.Event | None = None) -> None:
        self.file, self.size = file, file.size
        self._stop = stop or threading.Event()
        self._place: tuple[str, str] | None = None  # an address, and the etag that it tells
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing to let go of: connections are huggingface_hub's."""

    def pread(self, size: int, offset: int) -> bytearray:
        """`size` bytes at `offset`; shorter only at the end of the file.

        What a cut connection has brought is kept, and the rest asked for. Raises SourceChanged,
        SourceForbidden, SourceUnreachable, ShardMissing.
        """
        data = bytearray(max(min(size, self.size - offset), 0))
        at = 0

        def go_on() -> None:
            nonlocal at
            before = at
            try:
                for part in self._parts(offset + at, offset + len(data)):
                    data[at : at + len(part)] = part
                    at += len(part)
                if at < len(data):
                    raise Again("the connection was cut")
            except Again as again:
                raise Again(again.reason, again.wait, progress=at > before) from None

        if data:
            http.patiently(str(self.file), go_on, self._stop)
        return data

    def _parts(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end`, as far as one request brings them."""
        with ExitStack() as finding, http.answers(str(self.file)):
            if self._place is None:  # one asks the Hub, and the others wait for what it says
                finding.enter_context(self._lock)
            with self._ask(self._place, start, end) as answer:
                finding.close()
                left = end - start
                for part in answer.parts:  # to their end: only then is the connection kept
                    if self._stop.is_set():
                        raise SourceUnreachable(f"{self.file}: reading was stopped")
                    if left <= 0:
                        break
                    yield part[:left]
                    left -= len(part)

    @contextmanager
    def _ask(self, place: tuple[str, str] | None, start: int, end: int) -> Iterator[Answer]:
        """A good answer to a request for bytes `start` to `end`, from the place that is known."""
        from huggingface_hub import hf_hub_url

        f, headers = self.file, http.headers()
        url = hf_hub_url(f.repo, f.path, revision=f.commit, endpoint=http.endpoint())
        if place is not None and not _same_server(place[0], url):
            headers.pop("authorization", None)  # the address itself is the permission
        headers |= {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        with http.get(place[0] if place else url, headers) as answer:
            elsewhere = place is not None or not _same_server(answer.address, url)
            if elsewhere and answer.status in (400, 401, 403, 404, 410):
                self._place = None  # it has expired; the Hub tells another
                raise Again(f"its store answers {answer.status}", 0.0 if place else None)
            self._check(answer, place, start, end)
            if answer.address != url:
                self._place = (answer.address, answer.etag)
            yield answer

    def _check(self, answer: Answer, place: tuple[str, str] | None, start: int, end: int) -> None:
        """What is about to be read is what was asked for, and of the file that was listed."""
        f = self.file
        if answer.status == 416 or (answer.status < 300 and answer.total not in (None, f.size)):
            found = "fewer" if answer.total is None else answer.total
            raise SourceChanged(f"{f}: {f.size} bytes were listed, {found} are there; run it again")
        if answer.status >= 400:
            raise http.refusal(str(f), answer.status, answer.headers)
        whole = answer.status == 200 and (start, end) == (0, f.size)
        if not whole and (answer.status != 206 or answer.start != start):
            raise SourceUnreachable(
                f"{f}: the server does not send parts of files (status {answer.status}); "
                "download the model and give its directory"
            )
        # a digest speaks against another of its kind only: a mirror may tell one of its own
        known, told = (place[1], answer.etag) if place else (f.etag, answer.linked)
        if told and known and told != known and len(told) == len(known):
            raise SourceChanged(f"{f}: its etag was {known:.12}, and is {told:.12}; run it again")
