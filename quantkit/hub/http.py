"""Requests to the Hugging Face Hub: through huggingface_hub's client, with patience, and with
errors that have names.

Endpoint, token, proxies, certificates and time-outs are huggingface_hub's, environment variables
included. What it and its HTTP library raise is never repeated: it holds addresses that are as good
as passwords.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from quantkit import __version__
from quantkit.errors import (
    QuantkitError,
    ShardMissing,
    SourceForbidden,
    SourceNotFound,
    SourceUnreachable,
    UsageError,
)

SCHEME = "hf://"
FIRST_TRIES = 2  # of a server that has not answered yet: the way there may be closed
TRIES = 8  # failures in a row, without a byte in between, before giving up
LONGEST_WAIT = 30.0  # seconds, where the server does not ask for another time
LONGEST_ASKED = 300.0  # seconds; the Hub counts requests over five minutes
BLOCK = 1 << 14  # bytes taken from a connection at once; requests drops part of one at a cut
LOGIN = "log in with `hf auth login` or set HF_TOKEN"

_answered: set[str] = set()  # endpoints
_log = logging.getLogger("quantkit")
_T = TypeVar("_T")


def library(module: str) -> Any:
    """A module of huggingface_hub, which reads the environment as it starts. Raises UsageError."""
    try:
        return importlib.import_module(f"huggingface_hub.{module}")
    except ValueError as e:
        raise UsageError(
            f"huggingface_hub does not start ({e}); mend or unset the variables HF_... of the "
            "environment"
        ) from None


def endpoint() -> str:
    """The server's address. Raises UsageError."""
    found: str = os.environ.get("HF_ENDPOINT", library("constants").ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(found)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or any(c.isspace() for c in found):
        raise UsageError(
            "HF_ENDPOINT is no address of a server, such as https://huggingface.co; mend or unset "
            "it"
        )
    return found


def headers() -> dict[str, str]:
    """Headers of a request to the Hub, the token among them if there is one. Raises
    SourceForbidden."""
    found: dict[str, str] = _utils().build_hf_headers(
        library_name="quantkit", library_version=__version__
    )
    if not is_token(found.get("authorization", "")):
        raise SourceForbidden(f"the token holds characters that no token has; {LOGIN}")
    return found


def is_token(text: str) -> bool:
    """Whether a header can hold it."""
    return text.isascii() and text.isprintable()


def timeout() -> float:
    """Seconds to wait for a connection, and for each part of an answer."""
    return float(library("constants").HF_HUB_DOWNLOAD_TIMEOUT)


def _utils() -> Any:
    return library("utils")


def _session() -> Any:
    """What requests go through. Raises UsageError: the environment names no proxy, or no
    certificates, that it could use."""
    try:
        return _utils().get_session()
    except OSError:
        raise UsageError(_no_certificates("SSL_CERT_FILE or SSL_CERT_DIR")) from None
    except (ValueError, ImportError):
        raise UsageError(_NO_PROXY) from None


_NO_PROXY = (
    "the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names cannot be used; an address such as "
    "http://HOST:PORT is expected"
)


def _no_certificates(variables: str) -> str:
    return f"the certificates that {variables} names cannot be read; mend or unset it"


def check_name(repo: str) -> None:
    """Raises huggingface_hub's HFValidationError: no model can have the name."""
    _utils().validate_repo_id(repo)


@dataclass
class Answer:
    """A response of either HTTP library that huggingface_hub has used, its body not read yet."""

    status: int
    address: str  # after redirects
    headers: Mapping[str, str]
    first: Mapping[str, str]  # the headers of the first response, where there were redirects
    parts: Iterator[bytes] = field(repr=False)

    @property
    def etag(self) -> str:
        """The etag, bare."""
        return _bare(self.headers.get("ETag"))

    @property
    def linked(self) -> str:
        """The etag that the Hub tells of the file, wherever it sends us on to."""
        return _bare(self.first.get("X-Linked-Etag") or self.first.get("ETag"))

    @property
    def start(self) -> int | None:
        """Where the bytes begin in the file."""
        return self._range(1)

    @property
    def total(self) -> int | None:
        """The size of the file."""
        if self.status == 200:
            length = self.headers.get("Content-Length", "")
            return int(length) if length.isdecimal() else None
        return self._range(2)

    def _range(self, group: int) -> int | None:
        text = self.headers.get("Content-Range", "").strip()
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", text)
        return int(match[group]) if match and (match[group] or "").isdecimal() else None


def _bare(etag: str | None) -> str:
    return (etag or "").strip().removeprefix("W/").strip('"')


@contextmanager
def get(url: str, headers: dict[str, str]) -> Iterator[Answer]:
    """A GET whose body is read as far as the caller reads `parts`."""
    session = _session()
    if callable(getattr(session, "stream", None)):  # httpx: huggingface_hub 1.0 and later
        with session.stream("GET", url, headers=headers, timeout=timeout()) as r:
            first = r.history[0].headers if r.history else r.headers
            yield Answer(r.status_code, str(r.url), r.headers, first, r.iter_raw())
    else:  # requests
        with session.get(url, headers=headers, timeout=timeout(), stream=True) as r:
            first = r.history[0].headers if r.history else r.headers
            yield Answer(r.status_code, r.url, r.headers, first, r.iter_content(BLOCK))


class Again(Exception):
    """A failure that may pass. `wait`: seconds, if that is known; `progress`: bytes were won;
    `silent`: there was no answer at all."""

    def __init__(
        self,
        reason: str,
        wait: float | None = None,
        progress: bool = False,
        silent: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.progress, self.silent = reason, wait, progress, silent


def patiently(what: str, step: Callable[[], _T], stop: threading.Event | None = None) -> _T:
    """`step`, and once more each time it fails with `Again`, with growing pauses.

    Raises SourceUnreachable after TRIES failures in a row (FIRST_TRIES where the server has never
    answered), or when `stop` is set.
    """
    stop, failures, server = stop or threading.Event(), 0, endpoint()
    while True:
        try:
            result = step()
            _answered.add(server)
            return result
        except Again as again:
            if not again.silent:
                _answered.add(server)
            failures = 1 if again.progress else failures + 1
            if server not in _answered and failures >= FIRST_TRIES:
                raise SourceUnreachable(
                    f"{what}: {again.reason} from {urlsplit(server).hostname}; is this machine "
                    "online? HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy; with "
                    "HF_HUB_OFFLINE=1 nothing is asked, and a model that was downloaded is given "
                    "by its directory"
                ) from None
            if failures >= TRIES:
                raise SourceUnreachable(
                    f"{what}: {again.reason}, {TRIES} times over; run it again later"
                ) from None
            wait = min(2.0 ** (failures - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)
            if again.wait is not None:
                wait = min(again.wait, LONGEST_ASKED)
            if wait > 5:
                _log.warning("%s: %s; waiting %.0f seconds", what, again.reason, wait)
            if stop.wait(wait):
                raise SourceUnreachable(f"{what}: reading was stopped") from None


@contextmanager
def answers(where: str) -> Iterator[None]:
    """What huggingface_hub and its HTTP library raise inside, as `Again` or an error with a name.

    `where` is a model or a file on the Hub, for the message.
    """
    errors = library("errors")
    root: Any = errors.HfHubHTTPError.__bases__  # the libraries' roots, or OSError, are among them
    try:
        yield
    except QuantkitError:
        raise
    except errors.OfflineModeIsEnabled:
        raise SourceUnreachable(f"{where}: HF_HUB_OFFLINE is set; unset it and run again") from None
    except errors.HfHubHTTPError as e:
        raise refusal(where, e.response.status_code, e.response.headers) from None
    except errors.HFValidationError:
        raise SourceNotFound(f"{where}: not a name that a model can have") from None
    except ValueError as e:  # requests' JSONDecodeError is an OSError as well
        if words := hopeless(e):
            raise SourceUnreachable(f"{where}: {words}") from None
        raise strange(where) from None
    except (OSError, *root) as e:
        if type(e) is OSError and "CA certificate" in str(e):  # requests, once it is to ask
            raise UsageError(_no_certificates("REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE")) from None
        if words := hopeless(e):
            raise SourceUnreachable(f"{where}: {words}") from None
        raise Again(f"no answer ({type(e).__name__})", silent=True) from None


_HOPELESS = {  # by the names that either HTTP library gives them
    "TooManyRedirects": "its server sends us round in a circle",
    "UnsupportedProtocol": "its server sends us to where no web is",
    "InvalidURL": "its server sends us to where no web is",
    "InvalidSchema": "its server sends us to where no web is",
    "MissingSchema": "its server sends us to where no web is",
}


def hopeless(e: BaseException) -> str:
    """What is the matter where waiting does not help; nothing if it may. Raises UsageError: it is a
    proxy, which requests looks at once it is to ask."""
    if type(e).__name__ == "InvalidProxyURL" or "SOCKS" in str(e):
        raise UsageError(_NO_PROXY) from None
    kinds = (type(e).__name__, type(e.__context__).__name__)
    return next((_HOPELESS[kind] for kind in kinds if kind in _HOPELESS), "")


def strange(where: str) -> SourceUnreachable:
    """An answer that cannot be made sense of."""
    host = urlsplit(endpoint()).hostname
    return SourceUnreachable(f"{where}: {host} does not answer as the Hub does")


def refusal(where: str, status: int, told: Mapping[str, str]) -> Exception:
    """An answer that is none, by its status and its headers: the error to raise."""
    model, _, rest = where.removeprefix(SCHEME).partition("@")
    is_file = "/" in rest  # a file is named at its commit, a model at a revision or at none
    code, words = told.get("X-Error-Code", ""), told.get("X-Error-Message", "")
    if status in (408, 425, 429) or status >= 500:
        return Again(f"the server answers {status}", _asked_wait(told))
    if code == "GatedRepo":
        page = f"{urlsplit(endpoint()).hostname}/{model}"
        return SourceForbidden(f"{where}: gated; accept its terms at {page}, and {LOGIN}")
    if code == "RevisionNotFound":
        return SourceNotFound(f"{where}: no such revision of the model")
    if code == "EntryNotFound" or (status == 404 and is_file):
        return ShardMissing(f"{where}: not there any more; run it again")
    if status == 401 and words.startswith("Invalid credentials"):
        return SourceForbidden(f"{where}: the token was refused; {LOGIN}")
    if status in (401, 404):  # the Hub does not tell a private model from none
        return SourceNotFound(f"{where}: no such model, or a private one; {LOGIN}")
    if status == 403:
        return SourceForbidden(f"{where}: the token at hand may not read it; {LOGIN}")
    return SourceUnreachable(f"{where}: the server answers {status}")


def _asked_wait(told: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: Retry-After (seconds or a date), or the Hub's
    `RateLimit: "resolvers";r=0;t=55`."""
    text = told.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        match = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", told.get("RateLimit", ""))
        return float(match[1]) if match else None
