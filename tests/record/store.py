"""Where cases are kept: as files of a folder, or packed for the tests.

A folder has `recipes/CASE.json` and `convert/CASE.json`, or tables `*.json.xz` of
`{CASE: {"recipe": ..., "golden": ...}}`; both draw on its `tokenizers/`. What llama-quantize makes
is in `quantize/CASE.json` there, or, for all cases together, in `../quantize/goldens.json.gz`.
"""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

from tests.record import RecordError

PARTS = ("types", "types_imatrix")
_KEYS = ("block_count", "expert_count", "attention.head_count", "attention.head_count_kv")


def load(folder: Path, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A case's recipe and golden. Raises RecordError: it is not there."""
    recipe, golden = (folder / kind / f"{case}.json" for kind in ("recipes", "convert"))
    if recipe.exists():
        return json.loads(recipe.read_text("utf-8")), json.loads(golden.read_text("utf-8"))
    for path in sorted(folder.glob("*.json.xz")):
        found = load_table(path).get(case)
        if found and "recipe" in found:
            return found["recipe"], found["golden"]
    raise RecordError(f"no case {case} in {folder}")


def load_table(path: Path) -> dict[str, Any]:
    """Case -> its recipe and golden; nothing if the table is not there yet."""
    return dict(json.loads(lzma.decompress(path.read_bytes()))) if path.exists() else {}


def save(table: Path, recipe: dict[str, Any], golden: dict[str, Any]) -> None:
    """Put a case into a table, in place of an earlier one."""
    cases = {**load_table(table), golden["case"]: {"recipe": recipe, "golden": golden}}
    text = json.dumps(dict(sorted(cases.items())), ensure_ascii=False)
    table.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def imatrix(folder: Path, case: str) -> Path | None:
    """The case's importance matrix, in the folder or beside it."""
    found = (parent / "imatrix" / f"{case}.gguf" for parent in (folder, folder.parent))
    return next((path for path in found if path.exists()), None)


def load_quantized(folder: Path, case: str) -> dict[str, dict[str, Any]]:
    """Part (of `PARTS`) -> type -> what llama-quantize makes, as `llama_cpp.quantize` says.

    Raises RecordError: it is not there.
    """
    path = folder / "quantize" / f"{case}.json"
    if path.exists():
        stored = json.loads(path.read_text("utf-8"))
        return {part: stored[part] for part in PARTS if part in stored}
    packed = _packed(folder)
    if (found := packed["cases"].get(case)) is None:
        raise RecordError(f"no quantized files of {case} are recorded: give --type")
    names = [name for name, _, _ in found["tensors"]]

    def unpacked(entry: dict[str, Any]) -> dict[str, Any]:
        if "fails" in entry:
            return entry
        rest = {k: v for k, v in entry.items() if k not in ("formats", "sha256", "file_type")}
        sums = [packed["sha256"][i] for i in entry["sha256"]]
        tensors = [list(t) for t in zip(names, entry["formats"], sums, strict=True)]
        return {**rest, "general.file_type": entry["file_type"], "tensors": tensors}

    return {p: {k: unpacked(v) for k, v in found[p].items()} for p in PARTS if p in found}


def save_quantized(
    folder: Path, case: str, source: dict[str, Any], made: dict[str, dict[str, Any]]
) -> None:
    """Pack what llama-quantize makes of a case into `../quantize/goldens.json.gz`.

    `source`: the file that was quantized, as `fingerprint.of_file` says; `made`: as
    `load_quantized` returns it.
    """
    packed = _packed(folder)
    index = {sha256: i for i, sha256 in enumerate(packed["sha256"])}

    def pack(entry: dict[str, Any]) -> dict[str, Any]:
        if "fails" in entry:
            return entry
        rest = {k: v for k, v in entry.items() if k not in ("tensors", "general.file_type")}
        return {
            **rest,
            "file_type": entry["general.file_type"],
            "formats": [kind for _, kind, _ in entry["tensors"]],
            "sha256": [index.setdefault(sha, len(index)) for _, _, sha in entry["tensors"]],
        }

    kv = {key: field["value"] for key, field in source["kv"].items() if "value" in field}
    arch, tensors = kv["general.architecture"], {t["name"]: t for t in source["tensors"]}
    first = next(e for part in made.values() for e in part.values() if "tensors" in e)
    order = [tensors[name] for name, _, _ in first["tensors"]]
    packed["cases"][case] = {
        "arch": arch,
        "kv": {key: kv[f"{arch}.{key}"] for key in _KEYS if f"{arch}.{key}" in kv},
        "file_type": kv["general.file_type"],
        **{part: {name: pack(e) for name, e in types.items()} for part, types in made.items()},
        "tensors": [[t["name"], t["shape"][::-1], t["type"]] for t in order],
    }
    text = json.dumps({**packed, "sha256": list(index)}, separators=(",", ":"))
    _packed_path(folder).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _packed_path(folder: Path) -> Path:
    return folder.parent / "quantize" / "goldens.json.gz"


def _packed(folder: Path) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(_packed_path(folder).read_bytes())))
