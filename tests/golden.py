"""Compare a file of ours with what llama.cpp made: every key, every tensor, in order."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from quantkit.gguf.container import KeyValue, read_header
from quantkit.gguf.types import type_by_id


def fingerprint(item: KeyValue) -> dict[str, Any]:
    """A key-value as the goldens record it."""
    value = item.value
    if item.type == "FLOAT32":
        return {"type": item.type, "value": value, "f32_hex": item.raw[4:].hex()}
    if item.type != "ARRAY":
        return {"type": item.type, "value": value}
    out = {"type": item.type, "elem_type": item.element_type, "len": len(value)}
    if len(value) <= 32:
        return {**out, "value": value}
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(compact.encode()).hexdigest()
    return {**out, "sha256": digest, "first5": value[:5]}


def tensors(path: Path) -> list[dict[str, Any]]:
    """Every tensor of a file as the goldens record it."""
    header, data = read_header(path), path.read_bytes()
    out = []
    for t in header.tensors:
        ggml = type_by_id(t.ggml_type)
        assert ggml is not None
        n = 1
        for d in t.shape:
            n *= d
        start = header.data_offset + t.offset
        nbytes = n // ggml.block_size * ggml.type_size
        out.append(
            {
                "name": t.name,
                "shape": list(t.shape[::-1]),
                "type": ggml.name,
                "n_bytes": nbytes,
                "sha256": hashlib.sha256(data[start : start + nbytes]).hexdigest(),
            }
        )
    return out


def assert_same(
    path: Path,
    golden: dict[str, Any],
    either: dict[str, Any] | None = None,
    skip: str = "no keys",
    added: tuple[str, ...] = (),
    own: frozenset[str] = frozenset(),
) -> None:
    """Every key (order, type, value) and every tensor (order, shape, type, bytes) agree.

    `either` names keys that llama.cpp writes otherwise, or not (None), depending on how it loads
    the config; keys that begin with `skip`, and those that end in one of `added`, are left aside.
    `own`: tensors of ours that theirs lacks, or has otherwise.
    """
    header = read_header(path)
    ours = {
        item.key: fingerprint(item)
        for item in header.kv
        if not item.key.startswith(skip) and not item.key.endswith(added)
    }
    left_out = {k for k, v in (either or {}).items() if v is None and k not in ours}
    order = golden.get("kv_order", list(golden["kv"]))
    assert list(ours) == [k for k in order if k not in left_out and not k.startswith(skip)]
    for key, value in ours.items():
        other = (either or {}).get(key)
        assert value == golden["kv"][key] or value.get("value") == other is not None, key
    found = tensors(path)
    assert own <= {t["name"] for t in found}
    ours_too, theirs = (
        [t for t in listed if t["name"] not in own] for listed in (found, golden["tensors"])
    )
    assert ours_too == theirs
