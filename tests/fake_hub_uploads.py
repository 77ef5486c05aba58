"""The part of a Hugging Face Hub on 127.0.0.1 that takes uploads, and can be told to misbehave.

Repositories are tables of names and bytes. Weights go to the large-file store first, as with
git-lfs: a batch request names what the store lacks, each object is put there, and the commit names
it by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.fake_hub import LARGE, Server

Answer = tuple[int, dict[str, Any]]
CUT = -1  # in place of a status: the connection closes before the answer


class UploadHub:
    """`url` is the endpoint; `repos` what has been committed, `store` what has been uploaded, by
    sha256. `fault` is asked about every request: a status to answer with, or CUT."""

    def __init__(self, token: str, may_write: tuple[str, ...] = ("org",)) -> None:
        self.token, self.may_write = token, may_write
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, list[str]]] = []  # message, names
        self.store: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.log: list[str] = []
        self.refused_key = ""  # of front matter
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.lock = Lock()
        self._server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> UploadHub:
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = unquote(urlsplit(self.path).path)
                data = b""
                with hub.lock:
                    hub.log.append(f"{self.command} {path}")
                    status = hub.fault(self.command, path)
                    if status == CUT:
                        self.connection.shutdown(socket.SHUT_RDWR)
                        self.close_connection = True
                        return
                    told: dict[str, Any] = {}
                    if status is None:
                        token = self.headers.get("Authorization", "")
                        if (found := hub._file(path)) is not None:
                            status, data = 200, found
                        else:
                            status, told = hub._answer(self.command, path, body, token)
                data = data or json.dumps(told).encode()
                self.send_response(status)
                for key in ("X-Error-Code", "X-Error-Message"):
                    if key in told:
                        self.send_header(key, told[key])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def _file(self, path: str) -> bytes | None:
        """What has been committed, as it is downloaded."""
        repo, resolve, rest = path.lstrip("/").partition("/resolve/")
        return self.repos.get(repo, {}).get(rest.partition("/")[2]) if resolve else None

    def _answer(self, method: str, path: str, body: bytes, token: str) -> Answer:
        if path.startswith("/store/"):
            return self._put(path.removeprefix("/store/"), body)
        if token != f"Bearer {self.token}" and "paths-info" not in path:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        parts = path.split("/")
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._wanted(o["oid"], o["size"]) for o in json.loads(body)["objects"]],
            }
        repo = "/".join(parts[3:5])
        if repo not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}
        if parts[5:6] in ([], ["revision"]):
            files = [
                {"rfilename": name, "size": len(data), "blobId": "0" * 40}
                for name, data in self.repos[repo].items()
            ]
            return 200, {"id": repo, "sha": "0" * 40, "siblings": files, "private": False}
        answers = {"paths-info": self._paths, "preupload": self._modes, "commit": self._commit}
        return answers[parts[5]](repo, body)

    def _create(self, asked: dict[str, Any]) -> Answer:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.may_write:
            return 403, {"X-Error-Message": "You don't have the rights to create a model"}
        if repo in self.repos:
            return 409, {"url": f"{self.url}/{repo}"}
        self.repos[repo] = {".gitattributes": b""}
        self.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, {"url": f"{self.url}/{repo}", "name": repo}

    def _validate(self, content: str) -> Answer:
        front = yaml.safe_load(content.split("---\n")[1])
        if self.refused_key in front:
            return 400, {"errors": [{"message": f'"{self.refused_key}" must be one of the list'}]}
        return 200, {"errors": [], "warnings": []}

    def _wanted(self, oid: str, size: int) -> dict[str, Any]:
        found: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in self.store:
            found["actions"] = {"upload": {"href": f"{self.url}/store/{oid}"}}
        return found

    def _put(self, oid: str, body: bytes) -> Answer:
        assert hashlib.sha256(body).hexdigest() == oid
        self.store[oid] = body
        self.puts.append(oid)
        return 200, {}

    def _paths(self, repo: str, body: bytes) -> Answer:
        found: list[dict[str, Any]] = []
        for name in parse_qs(body.decode())["paths"]:
            if (data := self.repos[repo].get(name)) is None:
                continue
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": oid}
            if name.endswith(LARGE):
                digest = hashlib.sha256(data).hexdigest()
                entry |= {"oid": "0" * 40}
                entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
            found.append(entry)
        return 200, found  # type: ignore[return-value]

    def _modes(self, repo: str, body: bytes) -> Answer:
        files = json.loads(body)["files"]
        return 200, {
            "files": [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
        }

    def _commit(self, repo: str, body: bytes) -> Answer:
        lines = [json.loads(line) for line in body.splitlines()]
        names = []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.store[value["oid"]]
                names.append(value["path"])
            elif line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
                names.append(value["path"])
            elif line["key"] == "deletedFile":
                del self.repos[repo][value["path"]]
                names.append(value["path"])
        self.commits.append((message, names))
        oid = hashlib.sha1(body).hexdigest()
        return 200, {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{self.url}/{repo}/commit/{oid}",
        }
