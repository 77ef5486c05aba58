"""Checkpoints damaged, and how that has to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import errors
from quantkit.jobs import convert, quantize
from tests.checkpoints import read_safetensors, write_safetensors

Broken = Callable[..., Path]  # writes a checkpoint that a test may damage


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def edit_tensors(checkpoint: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = checkpoint / "model.safetensors"
    tensors = read_safetensors(path)
    edit(tensors)
    write_safetensors(path, tensors)


def fails(
    error: type[errors.QuantkitError], words: str, source: Path, out: Path
) -> errors.QuantkitError:
    """Both jobs raise `error`, its line says `words`, and the output directory stays empty."""
    out.mkdir()
    with pytest.raises(error) as caught:
        quantize(source, ["Q4_K_M", "Q8_0"], out)
    if source.is_dir():
        with pytest.raises(error):
            convert(source, out)
    assert list(out.iterdir()) == []
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message
    for word in words.split(" & "):
        assert word in message, message
    return caught.value
