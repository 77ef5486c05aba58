"""JSON files in which an object is expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantkit.errors import (
    CorruptFile,
    SourceNotFound,
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises SourceNotFound, CorruptFile."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise CorruptFile(f"{path}: not JSON ({e})") from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value
