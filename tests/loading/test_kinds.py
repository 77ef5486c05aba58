"""What a file is, and what is asked of each kind: sound ones have no faults, and each fault is
named; commands that make models of files refuse those that are none in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from quantkit import api, errors
from quantkit.gguf.container import KeyValue, read_header
from quantkit.loading import projector
from quantkit.loading.kinds import kind_of
from quantkit.loading.model import faults
from quantkit.loading.values import Info
from quantkit.model.open import open_gguf

Tensors = dict[str, np.ndarray]


def written(path: Path, arch: str, fill: Callable[[GGUFWriter], Any], tensors: Tensors) -> Path:
    writer = GGUFWriter(path, arch)
    fill(writer)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _adapter(w: GGUFWriter) -> None:
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", 16.0)


def _imatrix(w: GGUFWriter) -> None:
    w.add_type("imatrix")
    w.add_array("imatrix.datasets", ["wiki"])
    w.add_uint32("imatrix.chunk_count", 1)
    w.add_uint32("imatrix.chunk_size", 512)


def _vocabulary(w: GGUFWriter) -> None:
    w.add_tokenizer_model("llama")
    pieces = [f"<0x{b:02X}>" for b in range(256)]
    w.add_token_list(["<unk>", "<s>", "</s>", *pieces, "a"])
    w.add_token_scores([0.0] * 260)
    w.add_token_types([2, 3, 3, *[6] * 256, 1])


Q = "blk.0.attn_q.weight"
PAIR = {f"{Q}.lora_a": np.zeros((4, 32), "f2"), f"{Q}.lora_b": np.ones((64, 4), "f2")}
SUMS = {f"{Q}.in_sum2": np.ones((1, 32), "f4"), f"{Q}.counts": np.ones((1, 1), "f4")}
SOUND: dict[str, tuple[str, Callable[[GGUFWriter], Any], Tensors]] = {
    "a LoRA adapter": ("llama", _adapter, PAIR),
    "an importance matrix": ("", _imatrix, SUMS),
    "a vocabulary without a model": ("llama", _vocabulary, {}),
    "a control vector": (
        "controlvector", lambda w: None, {"direction.1": np.ones(32, "f4")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", SOUND)
def test_sound_files_that_are_no_models(words: str, tmp_path: Path) -> None:
    path = written(tmp_path / "file.gguf", *SOUND[words])
    verdict = api.verify(path)
    assert verdict.good, verdict.findings
    assert words in verdict.line
    inspection = api.inspect(str(path))
    assert not inspection.problems
    assert words in inspection.as_data()["facts"]["kind"]
    (row,) = api.report([path]).rows
    assert row.use_case
    for make in (
        lambda: api.quantize(str(path), "Q4_K_M", tmp_path / "out"),
        lambda: api.plan(str(path)),
        lambda: api.release(str(path), tmp_path / "out"),
    ):
        with pytest.raises((errors.RecipeError, errors.UnsupportedSource)) as caught:
            make()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_models_complete_a_prompt(tmp_path: Path) -> None:
    path = written(tmp_path / "file.gguf", *SOUND["a LoRA adapter"])
    matrix = written(tmp_path / "matrix.gguf", *SOUND["an importance matrix"])
    with pytest.raises(errors.UsageError, match="held against no source"):
        api.verify(matrix, tmp_path)
    with pytest.raises(errors.UsageError, match="completes no prompt"):
        api.verify(path, run=True)


B = f"{Q}.lora_b"
WRONG: dict[str, tuple[str, Callable[[GGUFWriter], Any], Tensors, str]] = {
    "half a pair": ("llama", _adapter, {f"{Q}.lora_a": PAIR[f"{Q}.lora_a"]}, "not the other half"),
    "other ranks": (
        "llama", _adapter, {**PAIR, B: np.ones((64, 8), "f2")}, "do not make a matrix",
    ),
    "another tensor": (
        "llama", _adapter, {**PAIR, "x.weight": np.ones(4, "f4")}, "neither a lora_a nor a lora_b",
    ),
    "another type": (
        "llama", lambda w: (w.add_type("adapter"), w.add_string("adapter.type", "dora")), PAIR,
        "adapter.type is 'dora'",
    ),
    "alpha as text": (
        "llama", lambda w: (w.add_type("adapter"), w.add_string("adapter.type", "lora"),
                            w.add_string("adapter.lora.alpha", "1")), PAIR, "reads FLOAT32",
    ),
    "tokens of another type": (
        "llama", lambda w: (_adapter(w), w.add_array("adapter.alora.invocation_tokens", [1])),
        PAIR, "no array of UINT32",
    ),
    "no pairs": ("llama", _adapter, {"a_norm.weight": np.ones(4, "f4")}, "no lora_a and lora_b"),
    "sums without counts": (
        "", _imatrix, {f"{Q}.in_sum2": SUMS[f"{Q}.in_sum2"]}, "without blk.0.attn_q.weight.counts",
    ),
    "no chunks": ("", lambda w: w.add_type("imatrix"), SUMS, "imatrix.chunk_count is not there"),
    "a vocabulary of another kind": (
        "llama", lambda w: (w.add_token_list(["a"]), w.add_tokenizer_model("nothing")), {},
        "'nothing', which llama.cpp does not know",
    ),
    "directions of two lengths": (
        "controlvector", lambda w: None,
        {"direction.1": np.ones(8, "f4"), "direction.2": np.ones(9, "f4")}, "differ in length",
    ),
    "a direction of F16": (
        "controlvector", lambda w: None, {"direction.1": np.ones(8, "f2")}, "no vector of F32",
    ),
    "no direction": (
        "controlvector", lambda w: None, {"other": np.ones(8, "f4")}, "there is no direction.N",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_faults_of_files_that_are_no_models(what: str, tmp_path: Path) -> None:
    arch, fill, tensors, words = WRONG[what]
    verdict = api.verify(written(tmp_path / "file.gguf", arch, fill, tensors))
    assert not verdict.good
    assert any(words in finding for finding in verdict.findings), verdict.findings


def test_drafts_and_models_are_told_apart() -> None:
    def named(arch: str) -> list[KeyValue]:
        from quantkit.gguf.container import string

        return [string("general.architecture", arch.encode())]

    names = ["token_embd.weight"]
    assert kind_of(named("llama"), names).words == "a model"
    assert kind_of(named("eagle3"), names).words == "a draft model"


@pytest.fixture(scope="module")
def mmproj(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    from quantkit.architectures.rules import ConversionOptions
    from quantkit.jobs import convert
    from quantkit.model.open import Reading

    out = {}
    for case in ("gemma3-4b-mmproj", "gemma4-e2b-mmproj"):
        out[case] = tmp_path_factory.mktemp("mmproj") / f"{case}.gguf"
        asked = Reading(options=ConversionOptions(mmproj=True))
        convert(checkpoint(case), out[case], "bf16", reading=asked)
    return out


def changed(
    path: Path, keys: dict[str, Any], tensors: dict[str, Info | None]
) -> tuple[list[KeyValue], list[Info]]:
    """A file's keys and tensors with some of them changed, or left out (None)."""
    from gguf import GGUFValueType

    from quantkit.gguf.container import array, scalar, string

    header = read_header(path)
    items = {item.key: item for item in header.kv}
    for key, value in keys.items():
        if value is None:
            del items[key]
        elif isinstance(value, str):
            items[key] = string(key, value.encode())
        elif isinstance(value, list):
            items[key] = array(key, value, None)
        else:
            kind = "BOOL" if isinstance(value, bool) else "FLOAT32"
            kind = "UINT32" if type(value) is int else kind
            items[key] = scalar(key, GGUFValueType[kind], value)
    infos: dict[str, Info | None] = {
        t.name: Info(t.name, t.shape, t.stored) for t in open_gguf(path).tensors
    }
    infos |= tensors
    return list(items.values()), [info for info in infos.values() if info is not None]


V, A = "clip.vision.", "clip.audio."
QUESTIONS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("3", {"clip.has_vision_encoder": False}, {}, "neither clip.has_vision_encoder nor"),
    ("3", {"clip.use_silu": True}, {}, "both clip.use_gelu and clip.use_silu"),
    ("3", {"clip.projector_type": None}, {}, "neither clip.projector_type nor"),
    ("3", {"clip.projector_type": "gemma9"}, {}, "'gemma9', which llama.cpp does not know"),
    ("3", {f"{V}patch_size": None}, {}, "clip.vision.patch_size is not there"),
    ("3", {f"{V}patch_size": 0}, {}, "llama.cpp works with 1 to 65535"),
    ("3", {f"{V}patch_size": 14.0}, {}, "is FLOAT32 where llama.cpp reads UINT32"),
    ("3", {f"{V}block_count": 1 << 31}, {}, "more than llama.cpp counts to"),
    ("3", {f"{V}image_size": 8193}, {}, "8192 is the most"),
    ("3", {f"{V}projector.scale_factor": 0}, {}, "clip.vision.projector.scale_factor is 0"),
    ("3", {f"{V}attention.layer_norm_epsilon": None}, {}, "llama.cpp reads FLOAT32"),
    ("3", {f"{V}image_mean": None}, {}, "clip.vision.image_mean is not an array of FLOAT32"),
    ("3", {f"{V}image_std": [1, 1, 1]}, {}, "clip.vision.image_std is not an array of FLOAT32"),
    ("3", {f"{V}image_std": [1.0]}, {}, "wants one a colour"),
    ("3", {f"{V}attention.head_count": 3}, {}, "head_count is 3, for a width of 128"),
    ("3", {f"{V}embedding_length": 0}, {}, "clip.vision.embedding_length is 0"),
    ("3", {f"{V}image_size": 448}, {}, "4096 rows, not the 1024 of an image of 448 pixels"),
    ("3", {}, {"mm.soft_emb_norm.weight": None}, "mm.soft_emb_norm.weight is not there"),
    ("3", {}, {"v.blk.2.ffn_up.weight": None}, "v.blk.2.ffn_up.weight is not there"),
    ("3", {}, {"v.blk.1.attn_k.weight": None}, "v.blk.1.attn_k.weight is not there"),
    ("4", {f"{A}num_mel_bins": 300}, {}, "num_mel_bins is 300; llama.cpp works with 1 to 256"),
    ("4", {f"{A}projector_type": None}, {}, "nor clip.audio.projector_type"),
    ("4", {}, {"a.blk.0.conv_dw.weight": None}, "a.blk.0.conv_dw.weight is not there"),
]


@pytest.mark.parametrize(("which", "keys", "tensors", "words"), QUESTIONS)
def test_what_mtmd_asks_of_a_projector(
    which: str, keys: dict[str, Any], tensors: dict[str, Any], words: str, mmproj: dict[str, Path]
) -> None:
    path = mmproj["gemma3-4b-mmproj" if which == "3" else "gemma4-e2b-mmproj"]
    assert faults(*changed(path, {}, {})) == []
    found = faults(*changed(path, keys, tensors))
    assert any(words in line for line in found), found


def test_what_projectors_are_named(mmproj: dict[str, Path]) -> None:
    kinds = projector.projectors(read_header(mmproj["gemma4-e2b-mmproj"]).kv)
    assert kinds == {"vision": "gemma4v", "audio": "gemma4a"}
    inspection = api.inspect(str(mmproj["gemma4-e2b-mmproj"]))
    assert not inspection.problems
    assert inspection.as_data()["facts"]["projectors"] == kinds
    assert set(projector.NEEDS) <= projector.TYPES
