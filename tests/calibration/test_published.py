"""Matrices as people publish them, and damaged ones: the bytes of llama-quantize with each of them.

`python -m tests.calibration.test_published LLAMA_QUANTIZE` writes the table of its files' digests
(of one that it refuses: null).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.imatrix import read_imatrix
from quantkit.calibration.sums import Entry, as_gguf, read_sums
from quantkit.errors import ImatrixError
from quantkit.gguf.container import uint32
from quantkit.jobs import convert, quantize
from tests import checkpoints
from tests.calibration.imatrix_bytes import KEYS, gguf, legacy, string, strings
from tests.checkpoints import DATA
from tests.conftest import sha256

CASE = "mixtral-4x"
BASE = DATA / "imatrix" / f"{CASE}.gguf"
TABLE = DATA / "quantize" / "matrices.json"
TYPES = ("Q4_K_M", "IQ2_XS")
EXPERTS, PLAIN = "blk.0.ffn_down_exps.weight", "blk.1.attn_q.weight"
Tensors = dict[str, np.ndarray]
# where quantkit refuses what llama-quantize computes with: docs/recipes.md
STRICTER = {"dat, cut in its last field", "negative", "of no tensor"}


def tensors(entries: dict[str, Entry]) -> Tensors:
    out: Tensors = {}
    for name, e in entries.items():
        out[f"{name}.in_sum2"] = e.squares.reshape(e.counts.size, -1).copy()
        out[f"{name}.counts"] = e.counts.astype(np.float32).reshape(-1, 1)
    return out


def matrices() -> dict[str, bytes]:
    """What a matrix may look like, made of one."""
    base = read_sums(BASE)
    entries = dict(base.entries)
    calls = {
        name: (3, (3 * e.squares.reshape(e.counts.size, -1) / e.counts[:, None]).reshape(-1))
        for name, e in entries.items()
    }
    means = [(name.encode(), n, values.tolist()) for name, (n, values) in calls.items()]
    chunks, name = (9).to_bytes(4, "little"), (5).to_bytes(4, "little") + b"a.txt"
    out = {
        "dat": legacy(means, chunks + name),
        "dat, as the first versions wrote it": legacy(means),
        "dat, without a dataset": legacy(means, chunks),
        "dat, of no name": legacy(means, chunks + bytes(4)),
        "dat, of no calls": legacy([(n, 0, v) for n, _, v in means], chunks + name),
        "dat, and something after it": legacy(means, chunks + name + b"more"),
        "dat, cut in its last field": legacy(means, chunks + name[:-1]),
        "with sums and statistics": b"".join(as_gguf(base)),
        "of no text": gguf(tensors(entries), (*KEYS[:1], strings(KEYS[1].key), *KEYS[2:])),
        "of a text that is no list": gguf(
            tensors(entries), (*KEYS[:1], string(KEYS[1].key, b"a.txt"), *KEYS[2:])
        ),
        "of no chunks": gguf(tensors(entries), (*KEYS[:2], uint32(KEYS[2].key, 0), KEYS[3])),
        "of too many chunks": gguf(
            tensors(entries), (*KEYS[:2], uint32(KEYS[2].key, (1 << 31) + 5), KEYS[3])
        ),
        "without its keys": gguf(tensors(entries), KEYS[:2]),
    }

    def changed(what: str, change: Callable[[Tensors], None]) -> None:
        found = tensors(entries)
        change(found)
        out[what] = gguf(found)

    def set_(what: str, suffix: str, name: str, value: object) -> None:
        changed(what, lambda t: t.__setitem__(f"{name}.{suffix}", np.array(value, np.float32)))

    sums, counts = (tensors(entries)[f"{EXPERTS}.{s}"] for s in ("in_sum2", "counts"))
    width = tensors(entries)[f"{PLAIN}.in_sum2"].shape[1]
    set_("an expert that was not reached", "counts", EXPERTS, [[0], *counts[1:]])
    set_("one count of all experts", "counts", EXPERTS, [[7]])
    set_("experts in three dimensions", "in_sum2", EXPERTS, sums[:, None])
    set_("experts in one dimension", "in_sum2", EXPERTS, sums.reshape(-1))
    set_("a tensor that was not reached", "counts", PLAIN, [[0]])
    set_("four counts of one matrix", "counts", PLAIN, [[8], [0], [8], [9]])
    set_("half a count", "counts", PLAIN, [[2.5]])
    set_("less than no count", "counts", PLAIN, [[-3]])
    set_("zeros", "in_sum2", PLAIN, np.zeros((1, width)))
    set_("large", "in_sum2", PLAIN, np.full((1, width), 1e30))
    set_("negative", "in_sum2", PLAIN, np.full((1, width), -1))
    set_("not a number", "in_sum2", PLAIN, np.full((1, width), np.nan))
    set_("sums that are too few", "in_sum", PLAIN, np.zeros((1, 4)))
    for name in ("token_embd.weight", "blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", PLAIN):

        def other(t: Tensors, name: str = name) -> None:
            t[f"{name}.in_sum2"], t[f"{name}.counts"] = np.ones((1, 7)), np.ones((1, 1))

        changed(f"another size of {name}", other)

    def heads(t: Tensors) -> None:
        for name in ("token_embd.weight", "output.weight"):
            t[f"{name}.in_sum2"] = np.arange(1, width + 1, dtype=np.float32)[None]
            t[f"{name}.counts"] = np.ones((1, 1))

    def others(t: Tensors) -> None:
        for name in ("blk.99.attn_q", "v.blk.0.attn_q", "mm.0", "blk.9.nextn.eh_proj"):
            t[f"{name}.weight.in_sum2"] = np.ones((1, 4))
            t[f"{name}.weight.counts"] = np.ones((1, 1))

    def apart(t: Tensors) -> None:
        rows, each = t.pop(f"{EXPERTS}.in_sum2"), t.pop(f"{EXPERTS}.counts")
        for i, (row, count) in enumerate(zip(rows, each, strict=True)):
            name = EXPERTS.replace("_exps.weight", f".{i}.weight")
            t[f"{name}.in_sum2"], t[f"{name}.counts"] = row[None], count[None]

    def fewer(t: Tensors) -> None:
        for suffix in ("in_sum2", "counts"):
            t[f"{EXPERTS}.{suffix}"] = t[f"{EXPERTS}.{suffix}"][:-1]

    def without(t: Tensors) -> None:
        for suffix in ("in_sum2", "counts"):
            del t[f"{PLAIN}.{suffix}"]

    changed("with embedding and output", heads)
    changed("of more than the model has", others)
    changed("experts apart, as in 2023", apart)
    changed("an expert too few", fewer)
    changed("without a tensor", without)
    changed("half an entry", lambda t: t.pop(f"{PLAIN}.counts"))
    out["of no tensor"] = gguf({f"enc.{k}": v for k, v in tensors(entries).items()})
    return out


def source(parent: Path) -> Path:
    path = parent / "m.gguf"
    convert(checkpoints.from_recipe(CASE, parent / CASE), path, "bf16")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source(tmp_path_factory.mktemp("published"))


EXPECTED = json.loads(TABLE.read_text()) if TABLE.exists() else {}


def test_the_table_is_whole() -> None:
    assert EXPECTED.keys() == matrices().keys()
    refused = [name for name, made in EXPECTED.items() if not any(made.values())]
    assert len(refused) == 6


@pytest.mark.parametrize("what", EXPECTED)
def test_the_bytes_are_llama_quantize_s(
    what: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("imatrix").write_bytes(matrices()[what])
    for kind, digest in EXPECTED[what].items():
        out = tmp_path / f"{kind}.gguf"
        if digest is None or what in STRICTER:
            with pytest.raises(ImatrixError, match=r"^imatrix"):
                quantize(model, [kind], out, imatrix=read_imatrix("imatrix"))
            assert not out.exists()
            continue
        quantize(model, [kind], out, imatrix=read_imatrix("imatrix"))
        assert sha256(out) == digest


def main() -> None:
    program = Path(sys.argv[1]).resolve()
    table: dict[str, dict[str, str | None]] = {}
    with tempfile.TemporaryDirectory() as parent:
        os.chdir(parent)
        model, out = source(Path(parent)), Path("out.gguf")
        for what, data in matrices().items():
            Path("imatrix").write_bytes(data)
            table[what] = {}
            for kind in TYPES:
                out.unlink(missing_ok=True)
                command = [program, "--imatrix", "imatrix", model, out, kind, "1"]
                made = subprocess.run(command, capture_output=True).returncode == 0
                table[what][kind] = sha256(out) if made else None
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
