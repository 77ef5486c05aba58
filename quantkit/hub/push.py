"""A release brought to the Hugging Face Hub, through huggingface_hub: what is there already is not
sent again, so that a push that was cut goes on when it is given again."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from quantkit import __version__
from quantkit.errors import (
    NotLoggedIn,
    PushForbidden,
    PushInterrupted,
    PushRefused,
    SourceUnreachable,
)
from quantkit.hub import http
from quantkit.progress import SILENT, Progress

_T = TypeVar("_T")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
ASKED = 500  # paths in one request; the Hub takes 1,000


@dataclass(frozen=True)
class HubTarget:
    """Where a release goes. `private` is for a repository that is made anew (None: as the account
    has it); `commit`: "each" GGUF file in a commit of its own, with all its splits, or "all" in
    one."""

    repo: str
    private: bool | None = None
    commit: str = "each"


@dataclass(frozen=True)
class Upload:
    """A file to be published. `sha256` is known of weights, and taken of the rest."""

    path: Path
    sha256: str = ""

    @property
    def name(self) -> str:
        """Its name in the repository."""
        return self.path.name

    def is_same(self, remote: Any) -> bool:
        """Whether the file that the Hub tells of has the same bytes."""
        if remote.lfs is not None:
            digest = self.sha256 or hashlib.sha256(self.path.read_bytes()).hexdigest()
            return bool(remote.lfs.sha256 == digest)
        data = self.path.read_bytes() if not self.sha256 else b""
        return bool(remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


def check_name(repo: str) -> None:
    """Raises PushRefused for a name that no repository can have."""
    try:
        http.check_name(repo)
    except http.library("errors").HFValidationError:
        good = False
    else:
        good = repo.count("/") == 1
    if not good:
        raise PushRefused(
            f"{repo!r} is no name on the Hub; ORG/NAME of letters, digits, '-', '_' and '.' is "
            "expected, at most 96 characters"
        )


def check_login(target: HubTarget) -> None:
    """Raises NotLoggedIn if there is no token, or none that can be one."""
    import huggingface_hub

    token = huggingface_hub.get_token()
    if token is None:
        raise NotLoggedIn(f"{target.repo}: no token to push with; {http.LOGIN}")
    if not http.is_token(token):
        raise NotLoggedIn(
            f"{target.repo}: the token holds characters that no token has; {http.LOGIN}"
        )


def create(target: HubTarget) -> None:
    """Make the repository, unless it is there. Raises NotLoggedIn, PushForbidden, PushRefused,
    PushInterrupted."""
    check_login(target)
    _ask(
        target.repo,
        lambda: _api().create_repo(target.repo, private=target.private, exist_ok=True),
    )


def missing(target: HubTarget, files: Sequence[Upload]) -> list[Upload]:
    """The files that the repository lacks, or has with other bytes; all, if there is none."""
    there = _there(target, [f.name for f in files])
    return [f for f in files if f.name not in there or not f.is_same(there[f.name])]


def _there(target: HubTarget, names: Sequence[str]) -> Mapping[str, Any]:
    """What the Hub tells of the files that the repository has, by name."""
    from huggingface_hub.errors import RepositoryNotFoundError

    def ask() -> list[Any]:
        parts = [list(names[i : i + ASKED]) for i in range(0, len(names), ASKED)]
        try:
            return [found for part in parts for found in _api().get_paths_info(target.repo, part)]
        except RepositoryNotFoundError:
            return []

    return {found.path: found for found in _ask(target.repo, ask)}


def push(
    target: HubTarget,
    files: Sequence[Upload],
    drop: Sequence[str] = (),
    progress: Progress = SILENT,
) -> list[str]:
    """Bring files to a repository that exists; those without a sum (the card and the like) go last,
    together; files to `drop` leave it after that. Returns the names of what was sent. Raises
    PushError."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    wanted = missing(target, files)
    gone = [CommitOperationDelete(name) for name in _there(target, drop)] if drop else []
    weights, beside = [f for f in wanted if f.sha256], [f for f in wanted if not f.sha256]
    sets: dict[str, list[Upload]] = {}  # the splits of one file are of no use alone
    for f in weights:
        sets.setdefault(_SPLIT.sub("", f.name), []).append(f)
    groups = [wanted] if target.commit == "all" else [*sets.values(), beside]
    total, done = sum(f.path.stat().st_size for f in wanted), 0
    watched = progress if not sys.stderr.isatty() else SILENT  # there, bars are huggingface_hub's
    with _quietly():
        for group in filter(None, groups):
            adds = [CommitOperationAdd(f.name, str(f.path)) for f in group]
            for f, add in zip(group, adds, strict=True):
                watched.update("pushing", done, total)
                # one after another: what has arrived need not be sent again
                _ask(target.repo, partial(_send, target.repo, add))
                done += f.path.stat().st_size
            message = f"Add {group[0].name}" if len(group) == 1 else f"Add {len(group)} files"
            _ask(target.repo, partial(_commit, target.repo, adds, message))
        if gone:
            message = f"Remove {gone[0].path_in_repo}" if len(gone) == 1 else "Remove files"
            _ask(target.repo, partial(_commit, target.repo, gone, message))
    return [f.name for f in wanted]


def _send(repo: str, add: Any) -> None:
    _api().preupload_lfs_files(repo, [add], free_memory=False)


def _commit(repo: str, operations: Sequence[Any], message: str) -> None:
    _api().create_commit(repo, operations, commit_message=message)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=http.endpoint(), library_name="quantkit", library_version=__version__)


def _utils() -> Any:
    return http.library("utils")


@contextmanager
def _quietly() -> Iterator[None]:
    """huggingface_hub draws its bars at a terminal, and nowhere else."""
    utils = _utils()
    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _ask(repo: str, step: Callable[[], _T]) -> _T:
    """A step of a push, with patience; what goes wrong gets its name."""
    try:
        return http.patiently(repo, lambda: _named(repo, step))
    except SourceUnreachable as e:
        raise PushInterrupted(
            f"{e}; what has arrived stays, and the same command goes on"
        ) from None


def _named(repo: str, step: Callable[[], _T]) -> _T:
    errors = http.library("errors")
    root: Any = errors.HfHubHTTPError.__bases__  # the HTTP library's, or OSError, are among them
    try:
        return step()
    except errors.OfflineModeIsEnabled:
        raise PushInterrupted(f"{repo}: HF_HUB_OFFLINE is set; unset it and run again") from None
    except errors.HfHubHTTPError as e:
        raise _refusal(repo, e.response) from None
    except (OSError, RuntimeError, *root) as e:  # the way to the store fails with RuntimeError
        if told := http.hopeless(e):
            raise SourceUnreachable(f"{repo}: {told}") from None
        words = f"the push was cut ({type(e.__cause__ or e).__name__})"
        raise http.Again(words, silent=not isinstance(e, RuntimeError)) from None
    except ValueError as e:
        words = str(e) if "README.md" in str(e) else "it does not answer as the Hub does"
        raise PushRefused(f"{repo}: {' '.join(words.split())}") from None


def _refusal(repo: str, answer: Any) -> Exception:
    """An answer that is none, as the error to raise."""
    status, told = answer.status_code, answer.headers
    elsewhere = urlsplit(str(answer.url)).hostname != urlsplit(http.endpoint()).hostname
    if elsewhere or status in (408, 409, 412, 425, 429) or status >= 500:
        again = http.refusal(repo, status, told)
        return again if isinstance(again, http.Again) else http.Again(f"its store answers {status}")
    if status == 401:
        return NotLoggedIn(f"{repo}: the token was refused; {http.LOGIN}")
    if status in (403, 404):
        return PushForbidden(
            f"{repo}: the token at hand may not write there; use one with write access to "
            f"{repo.partition('/')[0]}"
        )
    words = " ".join(told.get("X-Error-Message", "").split())[:200]
    return PushRefused(f"{repo}: the Hub refuses it (status {status}{words and ': '}{words})")
