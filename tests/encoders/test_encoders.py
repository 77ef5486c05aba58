"""Every encoder against llama.cpp's converter: each key and each tensor of each case, and the file
itself; and what llama.cpp sees with it against what transformers does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.encoders import FAMILIES, family, find_encoder, supported_encoders
from quantkit.errors import NonFiniteWeight, NotLoadable
from quantkit.gguf.container import read_header
from quantkit.jobs import convert, quantize
from quantkit.loading import projector
from quantkit.model.encoder import names_encoder
from quantkit.model.open import Reading, open_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.torch_functions import sinusoids, torch_softplus
from quantkit.verification.verify import verify
from tests import golden
from tests.checkpoints import DATA, encoders
from tests.conftest import sha256
from tests.damage import edit_tensors
from tests.fake_hub import Hub
from tests.sampling import one_in

Get = Callable[[str], Path]

MMPROJ = Reading(options=ConversionOptions(mmproj=True))
OWN = "params.json"  # of Mistral's own format
# the end of a row of patches: llama.cpp's converter drops the tensor that it is a row of, and its
# runtime does not load the file without it
BREAK = "v.token_embd.img_break"
# Granite Speech's norm of a convolution: llama.cpp's converter has the place of its variance for
# it, and its runtime does not load the file
# RADIO has 32 layers of 1,280 channels, whatever config.json says: one of them is enough to compare
SHORT = "nemotron-"
ASTRAY, RIGHT = "conv_norm_var.", "conv_norm."


def cases(*outtypes: str) -> list[tuple[str, str]]:
    return [
        (case, outtype)
        for case, data in encoders().items()
        for outtype in data["golden"]["outtypes"]
        if not outtypes or outtype in outtypes
    ]


@pytest.mark.parametrize(("case", "outtype"), one_in(4, cases()))
def test_same_file_as_llama_cpp(
    case: str, outtype: str, checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, theirs = tmp_path / "out.gguf", encoders()[case]["golden"]
    if case.startswith(SHORT):
        with pytest.raises(NotLoadable, match=r"v\.blk\.1\.attn_out\.weight is not there"):
            convert(checkpoint(case), path, outtype, reading=MMPROJ)
        monkeypatch.setattr(projector, "_layers", lambda *asked: iter(()))
    convert(checkpoint(case), path, outtype, reading=MMPROJ)
    expected = theirs["outtypes"][outtype]
    added = {t.name for t in read_header(path).tensors} - {t["name"] for t in expected["tensors"]}
    if added == {BREAK}:
        _same_but_for_the_break(path, expected)
        return
    if any(ASTRAY in t["name"] for t in expected["tensors"]):
        _same_but_for_the_norms(path, expected)
        return
    golden.assert_same(path, expected, theirs.get("either"))
    if not theirs.get("either"):
        assert sha256(path) == expected["file_sha256"]


def _same_but_for_the_break(path: Path, expected: dict[str, Any]) -> None:
    ours = golden.tensors(path)
    assert [t for t in ours if t["name"] != BREAK] == expected["tensors"]
    (added,) = (t for t in ours if t["name"] == BREAK)
    assert (added["type"], len(added["shape"])) == ("F32", 1)
    keys = {item.key: golden.fingerprint(item) for item in read_header(path).kv}
    assert list(keys) == expected["kv_order"]
    differ = {key for key, value in keys.items() if value != expected["kv"][key]}
    assert differ <= {"general.size_label"}  # which counts it


def _same_but_for_the_norms(path: Path, expected: dict[str, Any]) -> None:
    theirs = [{**t, "name": t["name"].replace(ASTRAY, RIGHT)} for t in expected["tensors"]]
    assert golden.tensors(path) == theirs
    keys = {item.key: golden.fingerprint(item) for item in read_header(path).kv}
    assert list(keys) == expected["kv_order"]
    assert keys == expected["kv"]


def test_the_break_is_the_row_of_its_token(checkpoint: Get, tmp_path: Path) -> None:
    source = checkpoint("mistral3-mmproj")
    model = open_checkpoint(source, "bf16", MMPROJ)
    (segment,) = next(t.segments for t in model.tensors if t.name == BREAK)
    assert (segment.source_row, segment.count) == (12, 1)
    assert segment.source.endswith("embed_tokens.weight")
    assert model.partial == {segment.source}


def test_every_encoder_has_a_case() -> None:
    files = [data["recipe"]["files"] for data in encoders().values()]
    configs = [json.loads(found.get("config.json", "{}")) for found in files]
    tables = [(config.get("vision_config") or {}, config) for config in configs if config]
    names = {(table.get("architectures") or c["architectures"])[0] for table, c in tables}
    names |= {OWN for found in files if OWN in found}
    names |= {"PplxDeciderModel" for found in files if "decision_config.json" in found}
    covered = {find_encoder(name).hf_names for name in names}
    rows = [row for file in FAMILIES for row in family(file)]
    assert [row.hf_names for row in rows if row.hf_names not in covered] == []


@pytest.mark.parametrize("case", ["qwen3vl-mmproj", "gemma3-4b-mmproj"])
def test_llama_cpp_sees_what_transformers_sees(case: str, checkpoint: Get, tmp_path: Path) -> None:
    """The first tokens of a picture of noise. `tests/data/seen.npz` is what transformers 5.23 gives
    in float32; the largest difference was 0.0006 of 1.1 (Qwen3-VL) and 0.0007 of 2.7 (Gemma 3)."""
    pytest.importorskip("xllamacpp")
    from tests.real_mtmd import seen

    source, side = checkpoint(case), 256 if case.startswith("qwen") else 896
    text, encoder = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    convert(source, text, "f32", reading=Reading(pre="qwen2"))
    convert(source, encoder, "f32", reading=MMPROJ)
    picture = np.random.default_rng(7).integers(0, 256, (side, side, 3), dtype=np.uint8)
    rows = seen(text, encoder, picture, tmp_path)
    assert np.isfinite(rows).all()
    with np.load(DATA / "seen.npz") as known:
        expected = known[case.removesuffix("-mmproj")]
    assert np.abs(rows[: len(expected)] - expected).max() < 0.002
    half, eighth = tmp_path / "half.gguf", tmp_path / "eighth.gguf"
    convert(source, half, "f16", reading=MMPROJ)
    convert(source, eighth, "q8_0", reading=MMPROJ)
    for path, most in ((half, 0.01), (eighth, 0.2)):
        other = seen(text, path, picture, tmp_path)
        assert np.abs(other - rows).max() < most


def test_quantized_and_verified(checkpoint: Get, tmp_path: Path) -> None:
    """Types are made of a projector as of a model, and its source proves it."""
    source, path = checkpoint("qwen3vl-mmproj"), tmp_path / "mmproj.gguf"
    convert(source, path, "f16", reading=MMPROJ)
    whole = verify(path, source)
    assert whole.good
    assert "every tensor is byte for byte what its format gives" in whole.proven
    quantize(path, ["Q4_K_M"], tmp_path / "q4.gguf")
    header = read_header(tmp_path / "q4.gguf")
    kinds = {t.name: t.ggml_type for t in header.tensors}
    assert kinds["v.position_embd.weight"] == 0
    assert kinds["v.blk.0.ffn_up.weight"] not in (0, 1)
    assert verify(tmp_path / "q4.gguf").good
    other = verify(path, checkpoint("gemma3-4b-mmproj"))
    assert not other.good


def test_softplus_has_the_bits_of_torch() -> None:
    """Of torch 2.13, which computes sixteen at a time, or thirty-two, and what is left otherwise:
    the scales of a head are 128."""
    some = [-20, -3.25, -1.065838, -0.9394, 0, 0.27681994, 1.5498, 19.5, 25]
    x = np.concatenate([np.array(some), np.linspace(-6, 6, 23)]).astype(np.float32)
    digest = hashlib.sha256(torch_softplus(x).tobytes()).hexdigest()
    assert digest == "cbb47480029f0f739684c298d07423259d41601b044259a6318e7f920c5df291"


def test_sinusoids_have_the_bits_of_torch() -> None:
    """Of torch 2.13 with MKL_CBWR=COMPATIBLE."""
    digest = hashlib.sha256(sinusoids(1500, 96).tobytes()).hexdigest()
    assert digest == "e2bdd64261b749d407058bfb7e6005a31b8609585f03baa37476df153c184acb"
    digest = hashlib.sha256(sinusoids(1500, 640).tobytes()).hexdigest()
    assert digest == "7fde82adb3a87e2b245ba3ceac57d8d263eee45ef4ccff18294612523ee87c54"


def test_a_thinker_is_the_same_with_its_prefix(broken: Callable[..., Path], tmp_path: Path) -> None:
    source = broken("qwen3omni-mmproj")
    convert(source, tmp_path / "bare.gguf", "bf16", reading=MMPROJ)

    def prefix(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(("visual.", "audio_tower."))]:
            tensors[f"thinker.{name}"] = tensors.pop(name)

    edit_tensors(source, prefix)
    convert(source, tmp_path / "thinker.gguf", "bf16", reading=MMPROJ)
    assert sha256(tmp_path / "bare.gguf") == sha256(tmp_path / "thinker.gguf")


@pytest.mark.parametrize("case", ["gemma3-tiny-mmproj", "lfm2vl-mmproj", "cohere2vision-mmproj"])
def test_a_tower_that_transformers_5_saves(
    case: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    """Without `vision_model` before its names, and with SigLIP's own head, which nothing asks."""
    source = broken(case)
    convert(source, tmp_path / "usual.gguf", "bf16", reading=MMPROJ)

    def flat(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "vision_tower.vision_model." in name]:
            tensors[name.replace(".vision_model", "")] = tensors.pop(name)
        (layer,) = (name for name in tensors if name.endswith("embeddings.patch_embedding.bias"))
        tensors[layer.replace("embeddings.patch_embedding", "head.layernorm")] = tensors[layer]

    edit_tensors(source, flat)
    convert(source, tmp_path / "flat.gguf", "bf16", reading=MMPROJ)
    assert sha256(tmp_path / "flat.gguf") == sha256(tmp_path / "usual.gguf")


def test_bounds_that_bound_nothing(broken: Callable[..., Path], tmp_path: Path) -> None:
    """Infinity is none, as transformers begins; what would let nothing through is damage."""
    source, path = broken("gemma4-unbounded-mmproj"), tmp_path / "mmproj.gguf"
    convert(source, path, "bf16", reading=MMPROJ)
    assert verify(path, source).good
    quantize(path, ["Q8_0"], tmp_path / "q8.gguf")
    assert verify(tmp_path / "q8.gguf").good
    bound = "model.vision_tower.encoder.layers.0.mlp.gate_proj.input_max"
    for code in (b"\x80\xff", b"\xc0\x7f"):  # -infinity, NaN
        edit_tensors(source, lambda t, code=code: t.update({bound: ("BF16", [], code)}))  # type: ignore[misc]
        with pytest.raises(NonFiniteWeight, match=bound):
            convert(source, tmp_path / "wrong.gguf", "bf16", reading=MMPROJ)
        assert not (tmp_path / "wrong.gguf").exists()


def test_an_activation_in_capitals(broken: Callable[..., Path], tmp_path: Path) -> None:
    """llama.cpp's converter takes GELU for gelu in GLM-4V and Janus."""
    source = broken("glm4v-gelu-mmproj")
    convert(source, tmp_path / "small.gguf", "bf16", reading=MMPROJ)
    config = source / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"GELU"'))
    assert '"GELU"' in config.read_text()
    convert(source, tmp_path / "large.gguf", "bf16", reading=MMPROJ)
    assert sha256(tmp_path / "large.gguf") == sha256(tmp_path / "small.gguf")


def test_gemma_3n_as_it_is_released(broken: Callable[..., Path], tmp_path: Path) -> None:
    """With the norms of the convolutions over sound, which llama.cpp's converter refuses."""
    source = broken("gemma3n-mmproj")
    base = "model.audio_tower.subsample_conv_projection"
    edit_tensors(source, lambda t: t.update(
        {f"{base}.conv_{i}.norm.weight": ("BF16", [n], bytes(2 * n)) for i, n in ((0, 16), (1, 8))}
    ))  # fmt: skip
    convert(source, tmp_path / "out.gguf", "f16", reading=MMPROJ)
    shapes = {t.name: t.shape for t in read_header(tmp_path / "out.gguf").tensors}
    assert [shapes[f"a.conv1d.{i}.norm.weight"] for i in (0, 1)] == [(16,), (8,)]


def test_speech_with_a_prefix_is_the_same(broken: Callable[..., Path], tmp_path: Path) -> None:
    """As transformers 5 saves it."""
    source = broken("granitespeech-mmproj")
    convert(source, tmp_path / "bare.gguf", "bf16", reading=MMPROJ)

    def prefix(tensors: dict[str, Any]) -> None:
        for name in [*tensors]:
            tensors[f"model.{name}"] = tensors.pop(name)

    edit_tensors(source, prefix)
    convert(source, tmp_path / "prefixed.gguf", "bf16", reading=MMPROJ)
    assert sha256(tmp_path / "bare.gguf") == sha256(tmp_path / "prefixed.gguf")


def test_the_usual_name(checkpoint: Get, tmp_path: Path) -> None:
    plan = convert(checkpoint("gemma3-4b-mmproj"), tmp_path, "f16", reading=MMPROJ)
    (file,) = plan.files
    assert file.path.name == "mmproj-gemma-3-4b-it-F16.gguf"


def test_from_the_hub(checkpoint: Get, tmp_path: Path, hub: Hub) -> None:
    """The same file, of which little more than the encoder was read."""
    source = checkpoint("qwen3vl-mmproj")
    hub.publish(f"org/{source.name}", source)
    here, there = tmp_path / "here.gguf", tmp_path / "there.gguf"
    convert(source, here, "f16", reading=MMPROJ)
    convert(f"hf://org/{source.name}", there, "f16", reading=MMPROJ)
    assert sha256(here) == sha256(there)


def test_supported_encoders_are_listed() -> None:
    for file, names in FAMILIES.items():
        assert names.split() == [name for row in family(file) for name in row.hf_names], file
    assert len(supported_encoders()) == len({*supported_encoders()})
    assert "Gemma3ForConditionalGeneration" in supported_encoders()


def test_a_release_finds_every_encoder(tmp_path: Path) -> None:
    """Under whatever name a config has its table."""
    for case, data in encoders().items():
        (directory := tmp_path / case).mkdir()
        for name, text in data["recipe"]["files"].items():
            if name in ("config.json", OWN):
                (directory / name).write_text(text)
        assert names_encoder(CheckpointFiles.local(directory)), case
