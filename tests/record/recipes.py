"""Recipes: a checkpoint as text, to be written anew with the same bytes on every machine.

    {"case": "mixtral-4x", "dir": "ckpt",              # metadata takes names from the directory
     "files": {"config.json": "...", ...},             # the small files, as text
     "tokenizer_files": {"tokenizer.json": "0f6a4a8d0ba3-tokenizer.json", ...},
     "weights": {"model.safetensors": {"tensors": [TENSOR, ...], "metadata": {"format": "pt"}}}}

`tokenizer_files` lie in `tokenizers/` beside the recipes, named by the first twelve digits of their
SHA-256 since many cases share them. A TENSOR is `{"name", "dtype", "shape", "how"}` in the order of
the file's header; `how` is `{"mean", "std"}`, `{"low", "high"}` (integers) or `{"data"}`, as
`tests.checkpoints.values` makes them.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import DTYPES, read_safetensors, values, write_safetensors, write_torch
from tests.record import RecordError

_SMALL_FILE = 3000  # bytes of text that a recipe holds itself; the configuration always
_SMALL_TENSOR = 64  # weights that a recipe holds as they are
_INTEGERS = {"F8_E8M0", "U8", "I8", "I32", "I64"}


def write(recipe: dict[str, Any], tokenizers: Path, parent: Path) -> Path:
    """Write a recipe's checkpoint below `parent`; its directory."""
    out: Path = parent / recipe["dir"]
    out.mkdir(parents=True)
    for name, text in recipe["files"].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(text.encode())
    for name, stored in recipe["tokenizer_files"].items():
        shutil.copy(tokenizers / stored, out / name)
    for name, file in recipe["weights"].items():
        tensors = {
            t["name"]: (
                t["dtype"],
                t["shape"],
                values(t["name"], t["dtype"], t["shape"], t["how"]).tobytes(),
            )
            for t in file["tensors"]
        }
        if name.endswith(".bin"):
            write_torch(out / name, tensors)
        else:
            write_safetensors(out / name, tensors, file.get("metadata"))
    return out


def from_checkpoint(directory: Path, case: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The recipe of a checkpoint directory with safetensors, and its tokenizer files by the name
    that they are stored under.

    Names, dtypes, shapes and small tensors are as they are there; large tensors come out of the
    recipe as random values of the same mean and deviation, or between the same integers.

    Raises:
        RecordError: weights in a form that recipes do not know.
    """
    files, tokenizer_files, stored, weights = {}, {}, {}, {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name, data = path.relative_to(directory).as_posix(), path.read_bytes()
        if path.suffix == ".safetensors":
            weights[name] = {"tensors": _tensors(path), "metadata": {"format": "pt"}}
        elif path.suffix in (".bin", ".pt", ".pth", ".gguf"):
            raise RecordError(f"{path}: save the weights as safetensors")
        elif b"\0" in data or (len(data) > _SMALL_FILE and not _is_config(name)):
            tokenizer_files[name] = f"{hashlib.sha256(data).hexdigest()[:12]}-{path.name}"
            stored[tokenizer_files[name]] = data
        else:
            files[name] = data.decode("utf-8")
    recipe = {
        "case": case,
        "dir": directory.resolve().name,
        "files": files,
        "tokenizer_files": tokenizer_files,
        "weights": weights,
    }
    return recipe, stored


def _is_config(name: str) -> bool:
    return name == "config.json" or name.endswith(".index.json")


def _tensors(path: Path) -> list[dict[str, Any]]:
    out = []
    for name, (dtype, shape, data) in read_safetensors(path).items():
        if dtype not in DTYPES:
            raise RecordError(f"{name} in {path}: {dtype}; recipes know {', '.join(DTYPES)}")
        how = _how(np.frombuffer(data, DTYPES[dtype]), dtype)
        out.append({"name": name, "dtype": dtype, "shape": shape, "how": how})
    return out


def _how(x: np.ndarray, dtype: str) -> dict[str, Any]:
    """How to fill a tensor with values like these."""
    if x.size <= _SMALL_TENSOR:
        return {"data": (x if dtype in _INTEGERS else x.astype(np.float64)).tolist()}
    if dtype in _INTEGERS:
        return {"low": int(x.min()), "high": int(x.max()) + 1}
    x = x.astype(np.float64)
    return {"mean": float(f"{x.mean():.4g}"), "std": float(f"{x.std():.4g}")}
