"""What is kept of a file that llama.cpp made: enough to tell any other file from it.

Read with llama.cpp's own reader (gguf-py), so that no mistake in this project's reader can hide in
a golden.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, ReaderField

_LONGEST = 32  # elements of an array that is kept whole


def of_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a GGUF file, its keys and its tensors, both in file order."""
    reader = GGUFReader(path)
    kv = {k: _of_field(f) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    tensors = [
        {
            "name": tensor.name,
            "shape": [int(size) for size in tensor.shape],  # GGUF's order: columns first
            "type": tensor.tensor_type.name,
            "n_bytes": int(tensor.n_bytes),
            "sha256": hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        }
        for tensor in reader.tensors
    ]
    return {
        "file_size": path.stat().st_size,
        "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "kv_order": list(kv),
        "kv": kv,
        "tensors": tensors,
    }


def _of_field(field: ReaderField) -> dict[str, Any]:
    """A key's type and value; of a long array the length, the start, and a SHA-256 of its JSON."""
    value, kind = field.contents(), field.types[0]
    if kind == GGUFValueType.FLOAT32:
        return {"type": kind.name, "value": value, "f32_hex": field.parts[-1].tobytes().hex()}
    if kind != GGUFValueType.ARRAY:
        return {"type": kind.name, "value": value}
    element = GGUFValueType(int(field.parts[3][0]))  # after the key's length, the key, and ARRAY
    out = {"type": kind.name, "elem_type": element.name, "len": len(value)}
    if len(value) <= _LONGEST:
        return {**out, "value": value}
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return {**out, "sha256": hashlib.sha256(compact.encode()).hexdigest(), "first5": value[:5]}


def differences(
    golden: dict[str, Any], made: dict[str, Any], either: dict[str, Any] | None = None
) -> list[str]:
    """What differs between two files of `of_file`, a line each; nothing if they are the same.

    `either`: key -> its other value (a list: any of them), or None where it may be absent.
    """
    if golden["file_sha256"] == made["file_sha256"]:
        return []
    out, either = [], either or {}
    for key in {**golden["kv"], **made["kv"]}:
        ours, theirs = made["kv"].get(key), golden["kv"].get(key)
        if ours != theirs and not (key in either and _is_other(ours, either[key])):
            out.append(f"{key}: {_shown(theirs)} -> {_shown(ours)}")
    both = golden["kv"].keys() & made["kv"].keys()
    orders = [[key for key in file["kv_order"] if key in both] for file in (golden, made)]
    if orders[0] != orders[1]:
        out.append("the keys' order")
    if golden["tensors"] != made["tensors"]:
        theirs, ours = ({t["name"]: t for t in file["tensors"]} for file in (golden, made))
        names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        out.append(f"tensors: {', '.join(names[:5]) or 'their order'} ({len(names)} differ)")
    return out or ([] if either else ["the padding"])


def _is_other(found: dict[str, Any] | None, other: Any) -> bool:
    if found is None or other is None:
        return found is other
    return found.get("value") == other or (isinstance(other, list) and found.get("value") in other)


def _shown(found: dict[str, Any] | None) -> str:
    return "absent" if found is None else str(found.get("value", found.get("sha256")))[:60]
