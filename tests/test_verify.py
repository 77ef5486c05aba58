"""verify: what is right passes, and what is wrong is found and named."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quantkit import convert as jobs
from quantkit import manifest, spelling
from quantkit.cli import app
from quantkit.convert import convert, quantize
from quantkit.errors import CorruptFile, LlamaMissing
from quantkit.ggml_types import type_by_id
from quantkit.gguf_file import Header, KeyValue, header_bytes, read_header, string, uint32
from quantkit.imatrix import Imatrix, read_imatrix
from quantkit.plan import Plan
from quantkit.splits import Splits
from quantkit.verify import Verdict, verify
from tests import oracle
from tests.checkpoints import DATA, read_safetensors, write_safetensors

run = CliRunner().invoke
Change = Callable[[Header, bytearray], None]


@pytest.fixture(scope="module")
def imatrix() -> Imatrix:
    return read_imatrix(DATA / "imatrix" / "frankenmoe-4x.gguf")


@pytest.fixture(scope="module")
def source(frankenmoe: dict[str, Path]) -> Path:
    return frankenmoe["mergekit"]


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return quantize(source, ["Q4_K_M", "Q2_K", "F32"], tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def files(plain: Plan) -> dict[str, Path]:
    return {o.type: o.files[0].path for o in plain.outputs}


@pytest.fixture(scope="module")
def weighed(source: Path, imatrix: Imatrix, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file made with an importance matrix."""
    plan = quantize(source, ["Q2_K"], tmp_path_factory.mktemp("weighed"), imatrix=imatrix)
    return plan.files[0].path


def rewritten(
    path: Path, out: Path, change: Change = lambda header, data: None,
    kv: Callable[[tuple[KeyValue, ...]], Iterable[KeyValue]] = lambda kv: kv,
) -> Path:  # fmt: skip
    """A copy of a GGUF file with its tensors' bytes or its metadata changed."""
    header = read_header(path)
    data = bytearray(path.read_bytes()[header.data_offset :])
    change(header, data)
    out.write_bytes(header_bytes(tuple(kv(header.kv)), header.tensors) + data)
    return out


def span(header: Header, name: str) -> slice:
    t = next(t for t in header.tensors if t.name == name)
    ggml = type_by_id(t.ggml_type)
    assert ggml is not None
    return slice(t.offset, t.offset + ggml.row_bytes(prod(t.shape)))


def swap(name: str, a: int, b: int, count: int = 4) -> Change:
    def change(header: Header, data: bytearray) -> None:
        whole = span(header, name)
        experts = np.frombuffer(data[whole], np.uint8).reshape(count, -1)
        order = [{a: b, b: a}.get(x, x) for x in range(count)]
        data[whole] = experts[order].tobytes()

    return change


def overwrite(name: str, other: str) -> Change:
    def change(header: Header, data: bytearray) -> None:
        data[span(header, name)] = data[span(header, other)]

    return change


def flip(name: str, at: int, mask: int = 1) -> Change:
    def change(header: Header, data: bytearray) -> None:
        data[span(header, name).start + at] ^= mask

    return change


def without(key: str) -> Callable[[tuple[KeyValue, ...]], Iterable[KeyValue]]:
    return lambda kv: (item for item in kv if item.key != key)


def instead(new: KeyValue) -> Callable[[tuple[KeyValue, ...]], Iterable[KeyValue]]:
    return lambda kv: (new if item.key == new.key else item for item in kv)


TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_1", "Q5_1", "Q5_K_S", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS",
         "MXFP4_MOE", "TQ1_0", "TQ2_0", "F16", "BF16")  # fmt: skip


def test_what_llama_quantize_makes_is_proven(source: Path, tmp_path: Path) -> None:
    for output in quantize(source, TYPES, tmp_path).outputs:
        found = verify(output.files[0].path, source)
        assert found.findings == found.notes == [], output.type
        assert found.proven == [
            "the structure of 33 tensors is sound", "metadata and vocabulary are the source's",
            "llama.cpp splits texts as the source's tokenizer does",
            "every tensor is byte for byte what its format gives",
        ]  # fmt: skip
        assert all(t["same"] and t["ratio"] == 1 for t in found.tensors)
        assert sum(len(t["experts"]) for t in found.tensors) == 3 * 3 * 4


def test_with_an_importance_matrix_too(source: Path, imatrix: Imatrix, tmp_path: Path) -> None:
    for output in quantize(source, TYPES, tmp_path, imatrix=imatrix).outputs:
        path = output.files[0].path
        found = verify(path, source)
        assert found.good, (output.type, found.findings)
        errors = [x["ratio"] for t in found.tensors for x in (t, *t["experts"])]
        assert max(errors) < 1.1
        if not all(t["same"] for t in found.tensors):
            assert found.notes == ["made with an importance matrix; with --imatrix its bytes can "
                                   "be proven"]  # fmt: skip
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
    kind: str, change: Change, finding: str, files: dict[str, Path], weighed: Path, source: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
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
    json.dumps(found.tensors, allow_nan=False)


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


def test_a_type_that_is_not_made_here(files: dict[str, Path], source: Path, tmp_path: Path) -> None:
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
    assert found.notes == ["IQ3_XXS cannot be made here: that their errors are usual was not "
                           "shown, only that the weights are the source's"]  # fmt: skip
    (t,) = (t for t in found.tensors if t["name"] == name)
    assert t["expected_error"] is t["ratio"] is None
    assert 0.1 < t["relative_error"] < 0.3
    bad = rewritten(path, tmp_path / "bad.gguf", swap(name, 0, 1))
    assert verify(bad, source).findings == [f"experts 0 and 1 are swapped in {name}"]


KINDS, TOKENS = "tokenizer.ggml.token_type", "tokenizer.ggml.tokens"
FLAT = KeyValue("tokenizer.ggml.scores", struct.pack("<IIQ", 9, 6, 2048) + bytes(4 * 2048))


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        (without("general.architecture"), "general.architecture is not there"),
        (without("llama.block_count"), "llama.block_count is not there"),
        (without("tokenizer.ggml.model"), "tokenizer.ggml.model is not there"),
        (without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens is not there"),
        (without("tokenizer.ggml.scores"), "tokenizer.ggml.scores is not there"),
        (instead(FLAT), "tokenizer.ggml.scores are all 0: they were lost"),
        (instead(KeyValue(FLAT.key, struct.pack("<IIQff", 9, 6, 2, 0, -1))),
         "tokenizer.ggml.scores has 2 entries for 2048 tokens"),
        (instead(uint32("llama.block_count", 4)), "block_count is 4, and layer 3 has no tensors"),
        (instead(uint32("llama.block_count", 2)), "is 2, and there are tensors of layer 2"),
        (instead(uint32("llama.embedding_length", 128)),
         "llama.embedding_length is 128, token_embd.weight is 256 wide"),
        (instead(uint32("llama.expert_count", 8)),
         "llama.expert_count is 8, not the 4 of blk.0.ffn_down_exps.weight and 11 more tensors"),
        (without("llama.expert_count"), "llama.expert_count is 0, not the 4 of blk.0.ffn_down"),
        (instead(uint32("llama.expert_used_count", 5)), "used_count is 5, of 4 experts"),
        (instead(uint32("llama.expert_used_count", 0)), "used_count is 0, of 4 experts"),
        (instead(uint32("tokenizer.ggml.eos_token_id", 2048)), "is 2048, of 2048 tokens"),
        (instead(string("tokenizer.ggml.model", "gpt2")), "tokenizer.ggml.merges is not there"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together(
    kv: Any, words: str, files: dict[str, Path], tmp_path: Path
) -> None:
    found = verify(rewritten(files["Q2_K"], tmp_path / "bad.gguf", kv=kv))
    assert not found.good
    assert any(words in finding for finding in found.findings), found.findings


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        (instead(uint32("llama.expert_used_count", 1)),
         "llama.expert_used_count is 1 in the file, the source gives 2"),
        (without("llama.rope.freq_base"), "llama.rope.freq_base is not in the file"),
        (without("tokenizer.ggml.scores"), "tokenizer.ggml.scores is not in the file; the source "
                                           "gives 2048 entries"),
        (instead(FLAT), "tokenizer.ggml.scores[260] is 0, the source gives -1 (1788 of 2048"),
        (instead(uint32("tokenizer.ggml.bos_token_id", 3)), "tokenizer.ggml.bos_token_id is 3 in"),
        (instead(KeyValue(FLAT.key, struct.pack("<IIQff", 9, 6, 2, 0, -1))),
         "has 2 entries in the file, the source gives 2048"),
        (instead(string("general.architecture", "qwen2")), "architecture qwen2, the source of ll"),
    ],
)  # fmt: skip
def test_metadata_that_is_not_the_source_s(
    kv: Any, words: str, files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    found = verify(rewritten(files["Q2_K"], tmp_path / "bad.gguf", kv=kv), source)
    assert any(words in finding for finding in found.findings), found.findings


def test_a_vocabulary_that_splits_text_otherwise(
    files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    raw = next(i.raw for i in read_header(files["Q2_K"]).kv if i.key == FLAT.key)
    scores = np.frombuffer(raw[16:], np.float32)[::-1].tobytes()
    turned = KeyValue(FLAT.key, raw[:16] + scores)
    found = verify(rewritten(files["Q2_K"], tmp_path / "bad.gguf", kv=instead(turned)), source)
    said = [text for text in found.findings if "tokens in llama.cpp" in text]
    assert len(said) >= 3
    assert said[0].startswith("'The quick brown fox")


def test_a_vocabulary_that_ends_llama_cpp(
    files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    """It throws where nothing catches: a byte token is of another kind."""
    raw = next(i.raw for i in read_header(files["Q2_K"]).kv if i.key == KINDS)
    kinds = np.frombuffer(raw[16:], np.int32).copy()
    kinds[kinds == 6] = 1
    kv = instead(KeyValue(KINDS, raw[:16] + kinds.tobytes()))
    header = read_header(files["Q2_K"])
    tokens = next(i.raw for i in header.kv if i.key == TOKENS)
    assert b"<0x41>" in tokens
    other = KeyValue(TOKENS, tokens.replace(b"<0x", b"<1x"))
    found = verify(
        rewritten(files["Q2_K"], tmp_path / "bad.gguf", kv=lambda old: instead(other)(kv(old))),
        source,
    )
    (finding,) = (f for f in found.findings if "does not read its vocabulary" in f)
    assert finding.startswith(str(tmp_path / "bad.gguf"))


def test_tensors_that_are_missing_or_of_another_shape(
    files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    header, path = read_header(files["Q2_K"]), tmp_path / "bad.gguf"
    data = files["Q2_K"].read_bytes()[header.data_offset :]

    def other(**changes: Any) -> Verdict:
        changed = "blk.0.attn_q.weight"
        infos = [replace(t, **changes) if t.name == changed else t for t in header.tensors]
        path.write_bytes(header_bytes(header.kv, infos) + data)
        return verify(path, source)

    found = other(name="blk.0.attn_z.weight")
    assert found.findings[:2] == [
        "blk.0.attn_q.weight is not in the file", "blk.0.attn_z.weight is not in the source",
    ]  # fmt: skip
    found = other(shape=(128, 512))
    assert found.findings == [
        "blk.0.attn_q.weight is [128, 512] in the file, [256, 256] in the source"
    ]
    start = next(t for t in header.tensors if t.name == "blk.0.attn_k.weight").offset
    found = other(offset=start)
    assert any("overlap" in finding for finding in found.findings)
    path.write_bytes(header_bytes(header.kv, header.tensors) + data + b"more")
    (finding,) = verify(path).findings
    assert f"{path.stat().st_size} bytes, of which {path.stat().st_size - 4} are" in finding


def test_truncated_files(files: dict[str, Path], tmp_path: Path) -> None:
    path, whole = tmp_path / "bad.gguf", files["Q2_K"].read_bytes()
    for size, words in ((len(whole) - 1000, "it is truncated"), (5000, "truncated or damaged"),
                        (2, "truncated")):  # fmt: skip
        path.write_bytes(whole[:size])
        (finding,) = verify(path).findings
        assert words in finding
    path.write_bytes(b"GGML" + whole[4:])
    assert verify(path).findings == [f"{path}: not a GGUF file (it does not start with 'GGUF')"]


def recorded(plan: Plan, directory: Path) -> list[Path]:
    """Copies of a plan's files with the manifest of a release beside them."""
    records = []
    for f in plan.files:
        path = directory / f.path.name
        path.write_bytes(f.path.read_bytes())
        spans = [(t.offset, t.offset + t.nbytes) for t in f.tensors]
        whole, parts = manifest.sums(path, spans)
        tensors = [
            {"name": t.name, "offset": t.offset, "bytes": t.nbytes, "sha256": part}
            for t, part in zip(f.tensors, parts, strict=True)
        ]  # fmt: skip
        records.append({"name": path.name, "type": "", "bytes": f.size, "sha256": whole,
                        "tensors": tensors})  # fmt: skip
    (directory / manifest.NAME).write_text(json.dumps({"name": "m", "files": records}))
    return [directory / r["name"] for r in records]


@pytest.fixture
def released(plain: Plan, tmp_path: Path) -> Path:
    return recorded(plain, tmp_path)[1]


def test_padding_counts_too(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    plan = convert(checkpoint("deepseek-v3"), tmp_path / "m.gguf")
    directory = tmp_path / "released"
    directory.mkdir()
    (path,) = recorded(plan, directory)
    header, whole = read_header(path), path.read_bytes()
    name = "blk.1.exp_probs_b.bias"
    end = header.data_offset + span(header, name).stop
    assert end % 32
    assert verify(path).good
    changed = bytearray(whole)
    changed[end] ^= 1
    path.write_bytes(changed)
    assert verify(path).findings == ["m.gguf: the padding after blk.1.exp_probs_b.bias was changed"]


def test_every_flipped_byte_is_found_and_named(released: Path) -> None:
    assert verify(released).proven[0] == "every byte is the one that manifest.json names"
    whole, header = released.read_bytes(), read_header(released)
    for t in header.tensors:
        part = span(header, t.name)
        start, end = part.start + header.data_offset, part.stop + header.data_offset
        for at in (start, end - 1):
            changed = bytearray(whole)
            changed[at] ^= 1
            released.write_bytes(changed)
            finding = f"{released.name}: the bytes of {t.name} were changed"
            assert finding in verify(released).findings
    for at in (0, 5, 100, header.data_offset // 2, header.data_offset - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        released.write_bytes(changed)
        assert verify(released).findings[0] == f"{released.name}: the header was changed"
    released.write_bytes(whole[:-5000])
    first, second = verify(released).findings
    assert f"{len(whole) - 5000} bytes, manifest.json says {len(whole)}; it ends before" in first
    assert "it is truncated" in second
    record = json.loads((released.parent / manifest.NAME).read_text())
    del record["files"][0]["tensors"][0]["offset"]
    (released.parent / manifest.NAME).write_text(json.dumps(record))
    path = released.with_name(record["files"][0]["name"])
    with pytest.raises(CorruptFile, match=r"manifest.json: not a manifest, or damaged"):
        verify(path)
    stranger = released.with_name("other.gguf")
    stranger.write_bytes(whole)
    assert verify(stranger).notes == ["manifest.json does not list other.gguf"]


def test_a_set_of_splits(source: Path, tmp_path: Path) -> None:
    request = jobs.Request(splits=Splits(max_tensors=10))
    plan = quantize(source, ["Q4_K_M"], tmp_path, request=request)
    assert len(plan.files) == 4
    for f in plan.files:
        found = verify(f.path, source)
        assert found.good
        assert len(found.tensors) == 33
    plan.files[2].path.unlink()
    (finding,) = verify(plan.files[0].path, source).findings
    assert "1 of 4 splits are not there" in finding


def test_a_smaller_mixture_is_read_as_it_was_made(source: Path, tmp_path: Path) -> None:
    reading = jobs.Reading(keep_experts=(0, 3), experts_used=2)
    path = quantize(source, ["Q4_K_M"], tmp_path, reading=reading).files[0].path
    assert verify(path, source, reading=reading).good
    findings = verify(path, source).findings
    assert "llama.expert_count is 2 in the file, the source gives 4" in findings


def test_the_command(
    files: dict[str, Path], source: Path, tmp_path: Path, frankenmoe_golden: dict[str, Any]
) -> None:
    file = str(files["Q4_K_M"])
    expected = frankenmoe_golden["quantize"]["Q4_K_M"]
    asked = ["--run", "--prompt", expected["completions"][0]["prompt"]]
    text = tmp_path / "text.txt"
    text.write_bytes((DATA / "text" / "held-prose.txt").read_bytes()[:6000])
    drawn = tmp_path / "errors.svg"
    arguments = ["verify", file, "--against", str(source), "--kl", str(text), "--ctx", "128"]
    result = run(app, [*arguments, *asked, "--json", "--picture", str(drawn)])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["verdict"] == "good"
    assert told["run"]["text"].startswith(expected["completions"][0]["text"])
    (kl,) = told["kl"]
    assert 0.002 < kl["kl"] < 0.008
    assert drawn.read_text().startswith("<svg")
    assert all(row in drawn.read_text() for row in ("attn_q", "ffn_up_exps 0", "ffn_up_exps 3"))
    assert [p.name for p in files["Q4_K_M"].parent.glob(".quantkit*")] == []
    lines = run(app, arguments).stdout.splitlines()
    assert lines[0].startswith("good: frankenmoe-4x-Q4_K_M.gguf: the structure of 33 tensors")
    assert any(line.startswith("text.txt") and f"{kl['kl']:.6f}" in line for line in lines)
    table = lines.index("Tensor" + lines[-11].removeprefix("Tensor"))
    assert lines[table].split() == ["Tensor", "Format", "Error", "Expected", "Cosine", "Worst",
                                    "block", "Bytes"]  # fmt: skip
    errors = [float(line.split()[2]) for line in lines[table + 1 :]]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 10


def test_divergence_from_another_file(files: dict[str, Path], tmp_path: Path) -> None:
    """That it is no copy of it is found, and how far it is from it is told all the same."""
    text = tmp_path / "text.txt"
    text.write_bytes((DATA / "text" / "held-c.txt").read_bytes()[:3000])
    file, other = str(files["Q4_K_M"]), str(files["Q2_K"])
    result = run(app, ["verify", file, "--against", other, "--kl", str(text), "--json"])
    told = json.loads(result.stdout)
    assert told["verdict"] == "bad"
    assert told["sound"]
    assert 0.05 < told["kl"][0]["kl"] < 0.2
    path = rewritten(files["Q4_K_M"], tmp_path / "bad.gguf", kv=without("tokenizer.ggml.scores"))
    result = run(app, ["verify", str(path), "--against", other, "--kl", str(text), "--json"])
    told = json.loads(result.stdout)
    assert not told["sound"]
    assert "kl" not in told


def test_what_llama_cpp_does_not_run_is_bad(files: dict[str, Path], tmp_path: Path) -> None:
    header, bad = read_header(files["Q2_K"]), tmp_path / "bad.gguf"
    data = files["Q2_K"].read_bytes()[header.data_offset :]
    names = {"blk.0.attn_q.weight": "blk.0.attn_z.weight"}
    infos = [replace(t, name=names.get(t.name, t.name)) for t in header.tensors]
    bad.write_bytes(header_bytes(header.kv, infos) + data)
    assert run(app, ["verify", str(bad)]).exit_code == 0
    result = run(app, ["verify", str(bad), "--run"])
    assert result.exit_code == 1
    assert result.stdout.startswith("bad: bad.gguf: 1 finding\n")
    assert "llama.cpp does not load it" in result.stdout
    assert "blk.0.attn_q.weight" in result.stdout


def test_the_command_says_what_is_bad(files: dict[str, Path], source: Path, tmp_path: Path) -> None:
    bad = rewritten(files["Q2_K"], tmp_path / "bad.gguf", swap("blk.0.ffn_up_exps.weight", 0, 1))
    result = run(app, ["verify", str(bad), "--against", str(source)])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "bad: bad.gguf: 1 finding", "  experts 0 and 1 are swapped in blk.0.ffn_up_exps.weight",
    ]  # fmt: skip
    assert lines[4].split()[:2] == ["blk.0.ffn_up_exps.weight", "Q2_K"]
    assert run(app, ["verify", str(bad), "--kl", "x.txt"]).exit_code == 2
    missing = run(app, ["verify", str(tmp_path / "none.gguf")])
    assert missing.exit_code == 1
    assert "no such file" in missing.stdout


def test_without_llama_cpp(
    files: dict[str, Path], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit import llama

    llama.library.cache_clear()
    monkeypatch.setattr(llama, "find_spec", lambda name: None)
    found = verify(files["Q2_K"], source)
    assert found.good
    assert found.notes == ["texts were not split in llama.cpp: llama.cpp is not installed; "
                           "pip install quantkit[llama]"]  # fmt: skip
    result = run(app, ["verify", str(files["Q2_K"]), "--run"])
    assert isinstance(result.exception, LlamaMissing)
    monkeypatch.undo()
    llama.library.cache_clear()


def test_a_tokenizer_that_its_library_does_not_read(
    files: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    other = tmp_path / source.name
    shutil.copytree(source, other)
    text = (other / "tokenizer.json").read_text()
    assert '"single_word"' in text
    (other / "tokenizer.json").write_text(text.replace('"single_word"', '"single"'))
    found = verify(files["Q2_K"], other)
    assert found.good
    assert len(found.notes) == 1
    assert "texts were not split in llama.cpp" in found.notes[0]
    assert "missing field `single_word`" in found.notes[0]


def test_the_reference_is_the_checkpoint_s_own(frankenmoe: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(
        (frankenmoe["classic"] / "tokenizer.model").read_bytes()
    )
    by_model, by_json = (spelling.reference(d) for d in (tmp_path, frankenmoe["mergekit"]))
    assert by_model is not None
    assert by_json is not None
    assert spelling.differences(by_model, by_json) == []
    assert spelling.reference(tmp_path / "nothing") is None
