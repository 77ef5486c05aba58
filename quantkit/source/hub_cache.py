"""The cache of huggingface_hub: `models--ORG--NAME/snapshots/COMMIT`, links into `blobs`."""

from __future__ import annotations

from pathlib import Path

from quantkit.errors import SourceNotFound


def cached_model(snapshot: Path) -> str | None:
    """ORG/NAME (or NAME) of a snapshot's directory; None for any other path."""
    path = snapshot.absolute()
    if path.parent.name != "snapshots":
        return None
    return _model(path.parent.parent)


def in_cache(path: Path) -> Path:
    """The one snapshot of a model's folder in the cache, or of `snapshots` in it; any other path is
    its own. Of several, the one that is `main` counts. Raises SourceNotFound."""
    folder = path.absolute()
    if folder.name == "snapshots":
        folder = folder.parent
    if _model(folder) is None or not (folder / "snapshots").is_dir():
        return path
    found = sorted(p for p in (folder / "snapshots").iterdir() if p.is_dir())
    main = folder / "refs" / "main"
    if len(found) > 1 and main.is_file():
        found = [p for p in found if p.name == main.read_text().strip()] or found
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise SourceNotFound(f"{path}: one snapshot is expected in it, found: {names}; name one")
    return found[0]


def _model(folder: Path) -> str | None:
    kind, _, name = folder.name.partition("--")
    return name.replace("--", "/", 1) if kind == "models" and name else None
