"""A Hugging Face Hub on 127.0.0.1, as far as quantkit needs one, that can be told to misbehave.

Models are directories. Weights are "large files": the hub sends a reader on to a second server,
under an address that expires, as the real one does. `fault` is asked about every request first.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".gguf")


@dataclass
class Fault:
    """What goes wrong with one request; the rest of it is as it should be."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)  # added, or in place of the right ones
    cut: int | None = None  # bytes after which the connection closes
    delay: float = 0.0  # seconds before the answer
    body: bytes | None = None


@dataclass(frozen=True)
class Request:
    """One request: its path with the query, the bytes that it asks for, and its headers."""

    kind: str  # "api", "resolve" or "blob"
    path: str
    range: tuple[int, int] | None
    headers: dict[str, str]

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.path).path.rpartition("/")[2])


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of ours."""


class Hub:
    """`url` is the endpoint; `log` are the requests in order. Use as a context manager."""

    def __init__(self) -> None:
        self.log: list[Request] = []
        self.connections = 0
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.uses = 1 << 30  # how often an address serves before it expires
        self.lock = Lock()
        self._blobs: dict[str, Path] = {}
        self._used: dict[str, int] = {}
        self._refs: dict[tuple[str, str], str] = {}
        self._trees: dict[str, dict[str, tuple[Path, str]]] = {}
        self._servers = [Server(("127.0.0.1", 0), self._handler()) for _ in range(2)]
        self.url, self.blob_url = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def publish(self, repo: str, directory: Path, revision: str = "main") -> str:
        """Make a directory the model `repo` at `revision`. Returns the commit."""
        tree = {}
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            data = path.read_bytes()
            if path.suffix in LARGE:
                etag = hashlib.sha256(data).hexdigest()
                self._blobs[etag] = path
            else:
                etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            tree[str(path.relative_to(directory))] = (path, etag)
        commit = hashlib.sha1(repr(sorted((k, v[1]) for k, v in tree.items())).encode()).hexdigest()
        self._trees[commit] = tree
        for name in (revision, commit):
            self._refs[repo, name] = commit
        return commit

    def bytes_of(self, kind: str) -> int:
        """Bytes that were asked for in requests of a kind."""
        return sum(r.range[1] - r.range[0] for r in self.log if r.kind == kind and r.range)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                hub.connections += 1
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET  # what huggingface_hub asks first

            def do_POST(self) -> None:  # paths-info, which mirrors ask for
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                is_json = body.startswith(b"{")
                hub._answer(self, (json.loads if is_json else parse_qs)(body.decode())["paths"])

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def _answer(self, http: BaseHTTPRequestHandler, paths: list[str] | None = None) -> None:
        parts = [unquote(p) for p in urlsplit(http.path).path.split("/")[1:]]
        kind = parts[0] if parts[0] in ("api", "blob") else "resolve"
        asked = http.headers.get("Range")
        span = None
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            span = (int(first), int(last or 1 << 60) + 1)
        headers = {k.lower(): v for k, v in http.headers.items()}
        request = Request(kind, http.path, span, headers)
        with self.lock:
            self.log.append(request)
            fault = self.fault(request) or Fault()
        time.sleep(fault.delay)
        if fault.status:
            status, told, body = fault.status, {}, b"no"
        elif kind == "api":
            status, told, body = self._api(parts, paths)
        elif kind == "resolve":
            status, told, body = self._resolve(parts, span)
        else:
            status, told, body = self._blob(parts[1], http.path, span)
        body = fault.body if fault.body is not None else body
        told = {"Content-Length": str(len(body)), **told, **fault.headers}
        http.send_response(status)
        for key, value in told.items():
            http.send_header(key, value)
        http.end_headers()
        if http.command == "HEAD":
            return
        http.wfile.write(body[: fault.cut])
        if fault.cut is not None:
            http.wfile.flush()
            http.connection.shutdown(socket.SHUT_RDWR)
            http.close_connection = True

    def _api(
        self, parts: list[str], paths: list[str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        repo, revision = "/".join(parts[2:4]), (parts + ["main"] * 6)[5]
        commit = self._refs.get((repo, revision))
        if commit is None:
            known = any(name == repo for name, _ in self._refs)
            code = "RevisionNotFound" if known else "RepoNotFound"
            return 404, {"X-Error-Code": code}, b"{}"
        siblings = []
        for name, (path, etag) in self._trees[commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": path.stat().st_size, "blobId": etag}
            if path.suffix in LARGE:
                entry["lfs"] = {"sha256": etag, "size": path.stat().st_size, "pointerSize": 130}
                entry["blobId"] = "0" * 40
            siblings.append(entry)
        if parts[4:5] in (["tree"], ["paths-info"]):
            files = [f for f in _tree(siblings) if paths is None or f["path"] in paths]
            return 200, {"Content-Type": "application/json"}, json.dumps(files).encode()
        info = {"id": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()

    def _resolve(
        self, parts: list[str], span: tuple[int, int] | None
    ) -> tuple[int, dict[str, str], bytes]:
        name, repo = "/".join(parts[4:]), "/".join(parts[:2])
        commit = self._refs.get((repo, parts[3]), parts[3])
        path, etag = self._trees[commit].get(name, (None, ""))
        if path is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"no such file"
        if path.suffix not in LARGE:
            status, sent, data = self._bytes(path, etag, span)
            return status, {**sent, "X-Repo-Commit": commit}, data
        with self.lock:
            key = str(len(self._used))
            self._used[key] = 0
        told = {
            "Location": f"{self.blob_url}/blob/{etag}?key={key}",
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(path.stat().st_size),
            "X-Repo-Commit": commit,
        }
        return 302, told, b""

    def _blob(
        self, etag: str, path: str, span: tuple[int, int] | None
    ) -> tuple[int, dict[str, str], bytes]:
        key = parse_qs(urlsplit(path).query)["key"][0]
        with self.lock:
            self._used[key] += 1
            if self._used[key] > self.uses:
                return 403, {}, b"expired"
        return self._bytes(self._blobs[etag], etag, span)

    def _bytes(
        self, path: Path, etag: str, span: tuple[int, int] | None
    ) -> tuple[int, dict[str, str], bytes]:
        size = path.stat().st_size
        if span is None:
            return 200, {"ETag": f'"{etag}"'}, path.read_bytes()
        with path.open("rb") as f:
            f.seek(span[0])
            data = f.read(span[1] - span[0])
        where = f"bytes {span[0]}-{span[0] + len(data) - 1}/{size}"
        return 206, {"ETag": f'"{etag}"', "Content-Range": where}, data


def _tree(siblings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files of a revision as the tree of a repository has them."""
    return [
        {
            "type": "file",
            "path": entry["rfilename"],
            "size": entry["size"],
            "oid": entry["blobId"],
            **({"lfs": {**entry["lfs"], "oid": entry["lfs"]["sha256"]}} if "lfs" in entry else {}),
        }
        for entry in siblings
    ]
