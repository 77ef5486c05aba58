"""Weights: what is right is proven, and what is another's is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.imatrix import Imatrix
from quantkit.errors import ImatrixError
from quantkit.gguf.container import Header, header_bytes, read_header
from quantkit.gguf.types import type_by_id
from quantkit.jobs import convert, quantize
from quantkit.verification.verify import verify
from tests import oracle
from tests.checkpoints import read_safetensors, write_safetensors
from tests.verification.damage import Change, flip, overwrite, rewritten, span, swap

TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_1", "Q5_1", "Q5_K_S", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS",
         "MXFP4_MOE", "TQ1_0", "TQ2_0", "F16", "BF16")  # fmt: skip


def test_what_llama_quantize_makes_is_proven(source: Path, tmp_path: Path) -> None:
    for output in quantize(source, TYPES, tmp_path).outputs:
        found = verify(output.files[0].path, source)
        assert found.findings == found.notes == [], output.type
        assert found.proven == [
            "the structure of 33 tensors is sound",
            "llama.cpp loads it",
            "metadata and vocabulary are the source's",
            "llama.cpp splits texts as the source's tokenizer does",
            "every tensor is byte for byte what its format gives",
        ]
        assert all(t.whole.same and t.whole.ratio == 1 for t in found.tensors)
        assert sum(len(t.experts) for t in found.tensors) == 3 * 3 * 4


def test_a_matrix_that_is_damaged(weighed: Path, source: Path, imatrix: Imatrix) -> None:
    values = {name: np.full_like(data, np.nan) for name, data in imatrix.values.items()}
    with pytest.raises(ImatrixError, match=r"NaN, infinite or negative importances for .* damaged"):
        verify(weighed, source, imatrix=replace(imatrix, values=values))


@pytest.mark.slow
def test_with_an_importance_matrix_too(source: Path, imatrix: Imatrix, tmp_path: Path) -> None:
    for output in quantize(source, TYPES, tmp_path, imatrix=imatrix).outputs:
        path = output.files[0].path
        found = verify(path, source)
        assert found.good, (output.type, found.findings)
        errors = [x.ratio for t in found.tensors for x in (t.whole, *t.experts)]
        assert max(x or np.inf for x in errors) < 1.1
        if not all(t.whole.same for t in found.tensors):
            assert found.notes == [
                "made with an importance matrix; with --imatrix its bytes can be proven"
            ]
        proof = verify(path, source, imatrix=imatrix)
        assert proof.proven[-1] == "every tensor is byte for byte what its format gives"
        assert proof.notes == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            swap("blk.1.ffn_up_exps.weight", 1, 3),
            "experts 1 and 3 are swapped in blk.1.ffn_up_exps.weight",
        ),
        (  # experts 0 and 2 of the model are the same
            swap("blk.2.ffn_down_exps.weight", 2, 3),
            "experts 2 and 3 are swapped in blk.2.ffn_down_exps.weight",
        ),
        (
            overwrite("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"),
            "blk.0.ffn_gate_exps.weight holds blk.0.ffn_up_exps.weight of the source",
        ),
        (
            overwrite("blk.1.attn_q.weight", "blk.2.attn_q.weight"),
            "blk.1.attn_q.weight holds blk.2.attn_q.weight of the source",
        ),
        (
            overwrite("blk.1.attn_norm.weight", "blk.2.attn_norm.weight"),
            "blk.1.attn_norm.weight holds blk.2.attn_norm.weight of the source",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q2_K", "weighed"])
def test_weights_of_another_are_named(
    kind: str,
    change: Change,
    finding: str,
    files: dict[str, Path],
    weighed: Path,
    source: Path,
    tmp_path: Path,
) -> None:
    path = rewritten({**files, "weighed": weighed}[kind], tmp_path / "bad.gguf", change)
    assert verify(path, source).findings == [finding]


def test_one_bit_is_found_where_the_rest_is_proven(
    files: dict[str, Path], source: Path, weighed: Path, imatrix: Imatrix, tmp_path: Path
) -> None:
    name = "blk.2.ffn_gate_exps.weight"
    path = rewritten(files["Q2_K"], tmp_path / "bad.gguf", flip(name, 84 * 256 * 2 + 84 * 9 + 20))
    assert verify(path, source).findings == [
        f"{name}, expert 2, row 9: not the bytes that Q2_K gives, unlike the rest"
    ]
    path = rewritten(weighed, tmp_path / "bad.gguf", flip(name, 20))
    assert verify(path, source).good  # nobody can tell, without the matrix
    (finding,) = verify(path, source, imatrix=imatrix).findings
    assert finding.startswith(f"{name}, expert 0, row 0: not the bytes")
    # a scale is another matter, also where no byte can be proven
    path = rewritten(weighed, tmp_path / "bad.gguf", flip(name, 84 * 256 + 81, 0x40))
    (finding,) = verify(path, source).findings
    assert finding.startswith(f"{name}, expert 1")
    path = rewritten(files["F32"], tmp_path / "bad.gguf", flip("output_norm.weight", 2, 1))
    (finding,) = verify(path, source).findings
    assert finding.startswith("output_norm.weight, row 0: not the bytes that F32 gives")
    path = rewritten(files["F32"], tmp_path / "bad.gguf", flip("output_norm.weight", 7, 0x40))
    (finding,) = verify(path, source).findings
    assert finding.startswith("output_norm.weight ")


def test_weights_that_are_no_numbers(files: dict[str, Path], source: Path, tmp_path: Path) -> None:
    def change(header: Header, data: bytearray) -> None:
        start = span(header, "blk.0.attn_q.weight").start
        data[start : start + 2] = b"\x00\x7e"  # the scale of a Q4_K block

    path = rewritten(files["Q4_K_M"], tmp_path / "bad.gguf", change)
    found = verify(path, source)
    assert found.findings == ["blk.0.attn_q.weight has NaN or infinity"]
    json.dumps(found.as_data(), allow_nan=False)


def test_nothing_but_noise(files: dict[str, Path], source: Path, tmp_path: Path) -> None:
    def change(header: Header, data: bytearray) -> None:
        whole = span(header, "blk.0.attn_output.weight")
        blocks = np.frombuffer(data[whole], np.uint8).reshape(-1, 144).copy()
        noise = np.random.default_rng(0).integers(0, 256, blocks.shape, np.uint8)
        blocks[:, 4:] = noise[:, 4:]  # the scales of blocks stay as they are
        data[whole] = blocks.tobytes()

    path = rewritten(files["Q4_K_M"], tmp_path / "bad.gguf", change)
    (finding,) = verify(path, source).findings
    assert finding.startswith("blk.0.attn_output.weight is not what the source has: relative error")
    assert "where Q4_K gives 0.0" in finding


def test_experts_that_are_nearly_the_same(source: Path, imatrix: Imatrix, tmp_path: Path) -> None:
    """Fine-tunes of one model differ less than a format loses; which is which still shows."""
    near = tmp_path / "near"
    near.mkdir()
    for path in source.iterdir():
        (near / path.name).write_bytes(path.read_bytes())
    tensors = read_safetensors(near / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, (dtype, shape, data) in tensors.items():
        if ".mlp.experts." in name:
            bits = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
            x = bits.view(np.float32).reshape(shape)
            x = x[:1] * (1 + 0.05 * rng.standard_normal(shape, np.float32))
            stored = (x.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            tensors[name] = (dtype, shape, stored)
    write_safetensors(near / "model.safetensors", tensors, {"format": "pt"})
    path = quantize(near, ["Q2_K"], tmp_path, imatrix=imatrix).files[0].path
    assert verify(path, near).good
    bad = rewritten(path, tmp_path / "bad.gguf", swap("blk.1.ffn_down_exps.weight", 0, 2))
    assert verify(bad, near).findings == [
        "experts 0 and 2 are swapped in blk.1.ffn_down_exps.weight"
    ]


def test_a_source_of_another_precision(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "m-F16.gguf", "f16")
    path = quantize(tmp_path / "m-F16.gguf", ["Q4_K_M"], tmp_path).files[0].path
    found = verify(path, source)
    assert found.good
    through_8_bits = tmp_path / "m-Q8_0.gguf"
    convert(source, through_8_bits, "q8_0")
    assert verify(path, through_8_bits).good


def test_a_type_that_wants_importance(files: dict[str, Path], source: Path, tmp_path: Path) -> None:
    """IQ3_XXS by ggml itself, in the place of an F32 tensor."""
    name = "blk.1.ffn_down_exps.weight"
    path, lib = tmp_path / "iq.gguf", oracle.library()
    header = read_header(files["F32"])
    kind = type_by_id(18)
    assert kind is not None
    blobs, infos, offset = [], [], 0
    data = files["F32"].read_bytes()[header.data_offset :]
    for t in header.tensors:
        blob = data[span(header, t.name)]
        if t.name == name:
            x = np.frombuffer(blob, np.float32)
            out = np.empty(kind.row_bytes(x.size), np.uint8)
            n = t.shape[-1]
            lib.ggml_quantize_init(18)
            lib.ggml_quantize_chunk(18, x.ctypes.data, out.ctypes.data, 0, x.size // n, n, None)
            blob, t = out.tobytes(), replace(t, ggml_type=18)
        infos.append(replace(t, offset=offset))
        blobs.append(blob + bytes(-len(blob) % 32))
        offset += len(blobs[-1])
    path.write_bytes(header_bytes(header.kv, infos) + b"".join(blobs))
    found = verify(path, source)
    assert found.good
    assert found.notes == []
    (t,) = (t.whole for t in found.tensors if t.name == name)
    assert t.expected_error is not None
    assert t.ratio == pytest.approx(1, abs=0.05)
    assert t.relative_error is not None
    assert 0.1 < t.relative_error < 0.3
    bad = rewritten(path, tmp_path / "bad.gguf", swap(name, 0, 1))
    assert verify(bad, source).findings == [f"experts 0 and 1 are swapped in {name}"]
