"""Where a model comes from: a path of this machine, or an address on the Hub; parsed once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import SourceNotFound, UnsupportedSource
from quantkit.hub.http import SCHEME
from quantkit.hub.repository import Address
from quantkit.source.hub_cache import cached_model, in_cache

# an address of a page of the Hub: the model, and perhaps a revision and a file of it
_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/\s]+/[^/\s?#]+)"
    r"(?:/(?:tree|blob|resolve|raw)/(?P<revision>[^/\s?#]+)(?:/(?P<file>[^\s?#]+))?)?/?(?:[?#].*)?"
)
_MODEL = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def address_of(text: str) -> str | None:
    """`hf://...` for what names a model on the Hub, in this or another spelling; else None."""
    if text.startswith(SCHEME):
        return text
    if page := _PAGE.fullmatch(text):
        revision = f"@{page['revision']}" if page["revision"] not in (None, "main") else ""
        return f"{SCHEME}{page['repo']}{revision}" + (f"/{page['file']}" if page["file"] else "")
    bare = text.removeprefix("hf:").lstrip("/")
    if text.startswith("hf:") and _MODEL.match(bare) and not Path(text).exists():
        return f"{SCHEME}{bare}"
    return None


def hint(text: str) -> str:
    """What to write instead of a path that is none, if that can be told."""
    if _MODEL.fullmatch(text) and not text.lower().endswith(".gguf"):
        above = Path(text).parent
        if above.is_file():
            return f"; {above} is a file"
        return f"; a model on the Hub is written {SCHEME}{text}"
    return ""


@dataclass(frozen=True)
class Source:
    """A checkpoint or a GGUF file, on this machine (`path`) or on the Hub (`address`)."""

    path: Path | None = None
    address: Address | None = None

    @classmethod
    def parse(cls, source: SourceLike) -> Source:
        """A path, `hf://ORG/MODEL[@REVISION][/FILE.gguf]`, an address of the Hub's pages, or a
        source that was parsed before. A model in the Hub's cache is its snapshot. Raises
        SourceNotFound: an address that is none, or a model of several snapshots."""
        if isinstance(source, Source):
            return source
        if isinstance(source, str) and (text := address_of(source)):
            return cls(address=Address.parse(text))
        if isinstance(source, str) and re.match(r"[a-z0-9]+://", source):
            raise SourceNotFound(
                f"{source}: not a model on the Hub; {SCHEME}ORG/MODEL or "
                "https://huggingface.co/ORG/MODEL is expected, or a path"
            )
        return cls(path=in_cache(Path(source)))

    def __str__(self) -> str:
        return str(self.address or self.path)

    @property
    def name(self) -> str:
        """What a release says that it was made of: the address, or the last part of the path."""
        if self.address:
            return str(self.address)
        return cached_model(self.local()) or self.local().resolve().name

    @property
    def model_on_hub(self) -> str | None:
        """ORG/MODEL, if it is a whole model on the Hub, or in its cache."""
        if self.path is not None:
            return cached_model(self.path)
        return self.address.repo if self.address and not self.address.file else None

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a whole model, and not one file. Raises SourceNotFound."""
        if self.address:
            return self.address.file is None
        if not self.local().exists():
            raise SourceNotFound(f"{self}: no such file or directory{hint(str(self))}")
        return self.local().is_dir()

    def local(self) -> Path:
        """The path on this machine. Raises UnsupportedSource if it is on the Hub."""
        if self.path is None:
            raise UnsupportedSource(f"{self}: a path of this machine is expected; download it")
        return self.path


SourceLike = str | os.PathLike[str] | Source
