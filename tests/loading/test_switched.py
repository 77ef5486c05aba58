"""A model whose adapters are among its own tensors is a model, and asks for both halves of each."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.gguf.container import read_header
from quantkit.jobs import convert
from quantkit.loading.kinds import MODEL, kind_of
from quantkit.loading.model import faults
from quantkit.loading.values import Info
from tests.attacks.header_parts import Parts, Tensor, counted, parts
from tests.attacks.small import number

ARCH, RANK, ADAPTERS = b"graniteswitch", 8, 2


def ids(*values: int) -> bytes:
    return struct.pack(f"<IIQ{len(values)}i", 9, 5, len(values), *values)


@pytest.fixture
def switched(checkpoint: Callable[[str], Path], tmp_path: Path) -> Parts:
    """A Granite with two adapters, as llama.cpp's granite-switch.cpp has it."""
    p = parts(convert(checkpoint("granite-dense"), tmp_path / "g.gguf").files[0].path)
    p.kv = [(key.replace(b"granite.", ARCH + b"."), raw) for key, raw in p.kv]
    arch = struct.pack("<I", 8) + counted(ARCH)
    p.kv = [(key, arch if key == b"general.architecture" else raw) for key, raw in p.kv]
    p.kv += [
        (ARCH + b".adapters.count", number(ADAPTERS)),
        (ARCH + b".adapters.lora_rank", number(RANK)),
        (ARCH + b".adapters.token_ids_activate", ids(5, 6)),
        (ARCH + b".adapters.token_ids_substitute", ids(7, 8)),
    ]
    joined, halves = [], []
    for t in p.tensors:
        stem = t.name.rpartition(b".")[0]
        if t.name.startswith(b"blk.") and len(t.dims) == 2:
            (n, m), slots = t.dims, ADAPTERS + 1
            halves.append(Tensor(stem + b".lora_a", [n, RANK, slots], 1, 0))
            halves.append(Tensor(stem + b".lora_b", [RANK, m, slots], 1, 0))
        if stem.endswith(b"attn_q"):
            rows = {u.name: u.dims[1] for u in p.tensors if len(u.dims) == 2}
            more = rows[t.name.replace(b"attn_q", b"attn_k")]
            qkv = t.name.replace(b"attn_q", b"attn_qkv")
            joined.append(Tensor(qkv, [t.dims[0], t.dims[1] + 2 * more], t.kind, 0))
        elif not stem.endswith((b"attn_k", b"attn_v")):
            joined.append(t)
    p.tensors = joined + halves
    p.lay_out()
    return p


def test_it_is_a_model(switched: Parts, tmp_path: Path) -> None:
    switched.write(path := tmp_path / "s.gguf")
    header = read_header(path)
    assert kind_of(header.kv, [t.name for t in header.tensors]) is MODEL
    infos = [Info(t.name, t.shape, "F16" if len(t.shape) > 1 else "F32") for t in header.tensors]
    assert faults(header.kv, infos) == []
    kv = [i for i in header.kv if "substitute" not in i.key]
    assert any("token_ids_substitute is not there" in line for line in faults(kv, infos))
    switched.kv[-1] = (ARCH + b".adapters.token_ids_substitute", ids(7))
    switched.write(path)
    assert "1 values for 2 adapters" in faults(read_header(path).kv, infos)[0]


@pytest.mark.skipif(sys.platform == "win32", reason="children are forked")
def test_llama_cpp_agrees(switched: Parts) -> None:
    pytest.importorskip("xllamacpp")
    from tests.loading.one_tensor import Found, compare

    compare("switched", switched, ARCH.decode(), found := Found())
    assert found.dangerous == found.strict == []
    assert found.agreed["refused by both"] > 100
