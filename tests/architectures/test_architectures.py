"""Every architecture against llama.cpp's converter: each key and each tensor of each case, and the
file itself where nothing may differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.architectures import FAMILIES, family, find
from quantkit.architectures.left_out import REASONS
from quantkit.architectures.rules import ConversionOptions, Map
from quantkit.execution import pipeline
from quantkit.gguf.container import TensorInfo, align, header_bytes, read_header
from quantkit.model.from_checkpoint import OUTTYPES, from_checkpoint
from quantkit.model.from_gguf import from_gguf
from quantkit.model.model import Model
from quantkit.planning.build import laid_out, plan_quantization
from quantkit.planning.schedule import Schedule
from quantkit.recipes.file_types import find_recipe
from quantkit.source.checkpoint import read_weights
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.tensors import Files
from quantkit.source.torch_functions import torch_exp
from tests import golden
from tests.architectures.differences import EIGHT_OF_FOUR, MISSED, OWN, SILENT, VALUES
from tests.checkpoints import architectures
from tests.conftest import sha256
from tests.damage import edit_config, edit_tensors
from tests.sampling import one_in

ARCHITECTURES = [row for file in FAMILIES for row in family(file)]

Get = Callable[[str], Path]
DECIDING = {
    "openjev": "OpenJevModel", "lfm2-d1": "D1Model", "pplx-decider": "PplxDeciderModel",
    "lfm2-d1-omni": "D1OmniModel", "laya": "ModernBertDecisionModel",
}  # fmt: skip


def options(args: list[str], source: Path | None = None) -> ConversionOptions:
    """What the case asks of the converter, of a checkpoint that lies in `source`."""
    mtp = "only" if "--mtp" in args else "without" if "--no-mtp" in args else "with"
    return ConversionOptions(
        mtp,
        "--fuse-qkv" in args,
        "--fuse-gate-up-exps" in args,
        mistral_format="--mistral-format" in args,
        dense_modules="--sentence-transformers-dense-modules" in args,
        dspark="--dspark" in args,
        target=source / "target" if source and "--target-model-dir" in str(args) else None,
    )


def convert(
    source: Path, out: Path, outtype: str, pre: str | None, asked: ConversionOptions
) -> Model:
    model = from_checkpoint(CheckpointFiles.local(source), outtype, pre, asked)
    pipeline.execute(Schedule(laid_out(model, outtype.upper(), out), 2))
    return model


def _jobs() -> list[tuple[str, str]]:
    return [
        (case, outtype)
        for case, data in architectures().items()
        if case not in EIGHT_OF_FOUR
        for outtype in data["golden"]["outtypes"]
        if outtype in ("auto", *OUTTYPES)
    ]


@pytest.mark.parametrize(("case", "outtype"), one_in(6, _jobs()))
def test_same_file_as_llama_cpp(case: str, outtype: str, checkpoint: Get, tmp_path: Path) -> None:
    theirs = architectures()[case]["golden"]
    path = tmp_path / "out.gguf"
    source = checkpoint(case)
    convert(source, path, outtype, theirs["pre"], options(theirs["args"], source))
    # False: llama.cpp was made to read a plain vocabulary where the family's own is another
    skip = "no keys" if theirs.get("vocabulary", True) else "tokenizer."
    added, number = (".expert_gating_func", 2) if case in SILENT else MISSED.get(case, ("", 0))
    own, either = OWN.get(case, frozenset()), {**theirs.get("either", {}), **VALUES.get(case, {})}
    golden.assert_same(
        path, theirs["outtypes"][outtype], either, skip, (added,) if added else (), own
    )
    if own or case in VALUES:
        return
    if added:
        header = read_header(path)
        assert header.get(header.get("general.architecture") + added) == number
    elif not theirs.get("either") and theirs.get("vocabulary", True):
        assert sha256(path) == theirs["outtypes"][outtype]["file_sha256"]


@pytest.mark.parametrize("case", sorted(EIGHT_OF_FOUR))
def test_a_contradiction_is_refused_and_the_rest_agrees(
    case: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    """llama.cpp converts a model that uses more experts than it has, and aborts as it loads it."""
    theirs = architectures()[case]["golden"]["outtypes"]["bf16"]
    source, path = broken(case), tmp_path / "out.gguf"
    with pytest.raises(errors.ConfigError, match="8 experts are used of 4"):
        from_checkpoint(CheckpointFiles.local(source))
    edit_config(source, num_experts_per_tok=2)
    convert(source, path, "bf16", architectures()[case]["golden"]["pre"], ConversionOptions())
    ours = {item.key: golden.fingerprint(item) for item in read_header(path).kv}
    differ = {key for key in ours.keys() | theirs["kv"] if ours.get(key) != theirs["kv"].get(key)}
    assert {key.partition(".")[2] for key in differ} == {"expert_used_count"}
    assert golden.tensors(path) == theirs["tensors"]


def _bytes(path: Path) -> dict[str, bytes]:
    header, data = read_header(path), path.read_bytes()
    ends = [t.offset for t in header.tensors[1:]] + [len(data) - header.data_offset]
    return {
        t.name: data[header.data_offset + t.offset : header.data_offset + end]
        for t, end in zip(header.tensors, ends, strict=True)
    }


@pytest.mark.parametrize(
    ("fused", "gate", "down"),
    [
        ("minimax-m2-tf5fused", "block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w2"),
        ("phimoe-tf5fused", "block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w2"),
    ],
)
def test_fused_experts_are_the_same_model(
    fused: str, gate: str, down: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    """Where llama.cpp stops at the fused spelling: ours of it equals ours of one tensor an expert,
    which is its own."""
    source = broken(fused)
    edit_config(source, num_experts_per_tok=2)
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    convert(source, a, "bf16", architectures()[fused]["golden"]["pre"], ConversionOptions())

    def respell(tensors: dict[str, Any]) -> None:
        for name, (dtype, shape, data) in list(tensors.items()):
            block, _, rest = name.partition(".mlp.")
            if not rest:
                continue
            del tensors[name]
            if not rest.startswith("experts."):
                rest = rest.replace("router", "gate")
                tensors[f"{block}.block_sparse_moe.{rest}"] = (dtype, shape, data)
                continue
            x = np.frombuffer(data, np.uint16).reshape(shape)
            for i, expert in enumerate(x):
                halves = [expert] if rest.endswith("down_proj") else np.split(expert, 2)
                names = [down] if len(halves) == 1 else [gate, gate.replace("w1", "w3")]
                for part, spelling in zip(halves, names, strict=True):
                    value = (dtype, list(part.shape), part.tobytes())
                    tensors[f"{block}.{spelling.format(i)}.weight"] = value

    edit_tensors(source, respell)
    convert(source, b, "bf16", architectures()[fused]["golden"]["pre"], ConversionOptions())
    assert a.read_bytes() == b.read_bytes()


def test_matrices_of_experts_as_transformers_5_saves_them(
    broken: Callable[..., Path], tmp_path: Path
) -> None:
    """Qwen3-VL-MoE as `[out, in]`, which llama.cpp writes as it is, so that its file does not load:
    ours is that of the released layout."""
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    source = broken("qwen3vlmoe")
    convert(source, a, "bf16", "qwen2", ConversionOptions())

    def turn(tensors: dict[str, Any]) -> None:
        for name, (dtype, shape, data) in tensors.items():
            if ".mlp.experts." in name:
                x = np.frombuffer(data, np.uint16).reshape(shape).swapaxes(1, 2)
                tensors[name] = (dtype, list(x.shape), np.ascontiguousarray(x).tobytes())

    edit_tensors(source, turn)
    convert(source, b, "bf16", "qwen2", ConversionOptions())
    assert a.read_bytes() == b.read_bytes()


def test_a_norm_for_every_head(checkpoint: Get, tmp_path: Path) -> None:
    """StableLM 2 12b, at which llama.cpp's converter stops."""
    path, source = tmp_path / "out.gguf", checkpoint("stablelm2-12b")
    convert(source, path, "bf16", "stablelm2", ConversionOptions())
    norms = _bytes(path)["blk.1.attn_q_norm.weight"]
    found = {t.name: t for t in read_weights(source / "model.safetensors")}
    with Files([source / "model.safetensors"]) as files:
        expected = [
            files.read_rows(t, 0, t.n_rows).astype(np.float32).ravel()
            for t in (
                found[f"model.layers.1.self_attn.q_layernorm.norms.{head}.weight"]
                for head in range(4)
            )
        ]
    assert (np.frombuffer(norms, np.float32)[:256] == np.concatenate(expected)).all()


def test_layers_that_only_the_config_promises(checkpoint: Get, tmp_path: Path) -> None:
    """A fine-tune without the head that predicts further tokens, where llama.cpp's converter stops
    unless it is told --no-mtp."""
    case = "qwen3next-without-mtp-tensors"
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    pre = architectures()[case]["golden"]["pre"]
    convert(checkpoint(case), a, "bf16", pre, ConversionOptions())
    convert(checkpoint(case), b, "bf16", pre, ConversionOptions(mtp="without"))
    assert a.read_bytes() == b.read_bytes()
    with pytest.raises(errors.ConfigError, match="no layers that predict"):
        from_checkpoint(
            CheckpointFiles.local(checkpoint(case)), "bf16", pre, ConversionOptions(mtp="only")
        )


def test_scoring_function_that_is_none(checkpoint: Get, tmp_path: Path) -> None:
    """dots.llm1 as it is on the hub, where llama.cpp's converter stops."""
    path = tmp_path / "out.gguf"
    convert(checkpoint("dots1"), path, "bf16", "qwen2", ConversionOptions())
    header = read_header(path)
    assert header.get("dots1.expert_gating_func") == 2  # the sigmoid
    assert header.get("dots1.expert_count") == 4
    names = {t.name for t in header.tensors}
    assert names >= {"blk.1.exp_probs_b.bias", "blk.1.ffn_up_exps.weight"}


@pytest.mark.parametrize(("says", "differs"), [(True, False), (False, True), (None, True)])
def test_what_llama_cpp_cannot_compute_is_told(
    says: bool | None, differs: bool, broken: Callable[..., Path]
) -> None:
    """It always makes the weights of Qwen3-MoE's experts add up to one; transformers does so only
    if it is told to."""
    directory = broken("qwen3moe")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.pop("norm_topk_prob", None)
    path.write_text(json.dumps(config if says is None else {**config, "norm_topk_prob": says}))
    notes = from_checkpoint(CheckpointFiles.local(directory), "bf16", "qwen2").notes
    assert any("'norm_topk_prob' is False" in note for note in notes) is differs


@pytest.mark.parametrize(("case", "told"), [("exaone4", True), ("exaone4-1.2b", False)])
def test_windows_that_llama_cpp_does_not_have_are_told(
    case: str, told: bool, checkpoint: Get
) -> None:
    """EXAONE 4 slides there with 64 layers only."""
    notes = from_checkpoint(CheckpointFiles.local(checkpoint(case)), "bf16", "exaone4").notes
    assert any("'layers with a window' is 3" in note for note in notes) is told


@pytest.mark.parametrize("case", ["deepseek-v3-fuse-gate-up", "mixtral-4x-fuse-gate-up"])
def test_joining_what_llama_cpp_keeps_apart(case: str, checkpoint: Get) -> None:
    asked = options(architectures()[case]["golden"]["args"])
    with pytest.raises(errors.ConfigError, match=r"no joined gate_up_exps in llama\.cpp"):
        from_checkpoint(CheckpointFiles.local(checkpoint(case)), "bf16", None, asked)


def test_dense_layers_among_sparse_ones(checkpoint: Get) -> None:
    """llama.cpp has no Qwen3-MoE with dense layers."""
    with pytest.raises(errors.ConfigError, match=r"'mlp_only_layers' is \[1\]"):
        from_checkpoint(CheckpointFiles.local(checkpoint("qwen3moe-yarn-mixed")))


def test_fp8_as_q8_0(checkpoint: Get, tmp_path: Path) -> None:
    """What is FP8 becomes Q8_0, also in a file of another type, with that file's very bytes."""
    mixed, plain = tmp_path / "a.gguf", tmp_path / "b.gguf"
    source = checkpoint("deepseek-v3-fp8")
    convert(source, mixed, "bf16", "deepseek-v3", ConversionOptions(fp8_as_q8=True))
    convert(source, plain, "q8_0", "deepseek-v3", ConversionOptions())
    types = {t.name: t.ggml_type for t in read_header(mixed).tensors}
    as_q8 = {t.name: t.ggml_type for t in read_header(plain).tensors}
    assert types["token_embd.weight"] == 30  # BF16
    assert types["blk.1.ffn_up_exps.weight"] == 8  # Q8_0
    eight = [name for name, kind in types.items() if kind == 8]
    a, b = _bytes(mixed), _bytes(plain)
    assert len(eight) >= 15
    assert all(a[name] == b[name] for name in eight)
    assert set(types.items()) - set(as_q8.items()) == {
        (name, 30) for name in ("token_embd.weight", "output.weight")
    }


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("qwen3moe", {"num_experts": 3}, "expert 3; & 3 experts"),
        ("qwen3moe", {"num_experts": 5}, "mlp.gate.weight & [4, 256] found & experts x hidden"),
        ("deepseek-v3", {"first_k_dense_replace": 2}, "model.layers.1.mlp.experts & layer 1"),
        ("deepseek-v3", {"first_k_dense_replace": 0}, "model.layers.0.mlp.down_proj & layer 0"),
        ("deepseek-v3", {"num_hidden_layers": 1}, "layer 1 & num_hidden_layers 1"),
        ("deepseek-v3", {"kv_lora_rank": 128}, "kv_lora & expected"),
        ("llama4", {"text_config": {}}, "num_hidden_layers is 48 & 47 tensors in all"),
        ("gpt-oss", {"quantization_config": None}, "_blocks & no quantization_config"),
        ("gpt-oss", {"quantization_config": {"quant_method": "hqq"}}, "'hqq' & mxfp4"),
        ("deepseek-v3-fp8", {"quantization_config": None}, "_scale_inv & no quantization_config"),
        ("nemotron-h-moe", {"hybrid_override_pattern": "ME"}, "names no kind for layer"),
        ("phimoe", {"rope_scaling": {"type": "longrope", "long_factor": [1], "short_factor": [1]}},
         "'long_factor' must hold 32"),
    ],
)  # fmt: skip
def test_config_against_tensors(
    case: str, changes: dict[str, Any], words: str, broken: Callable[..., Path]
) -> None:
    source = broken(case)
    edit_config(source, **changes)
    with pytest.raises(errors.ModelError) as caught:
        from_checkpoint(
            CheckpointFiles.local(source), "bf16", architectures()[case]["golden"]["pre"]
        )
    message = str(caught.value)
    assert "\n" not in message
    for word in words.split(" & "):
        assert word in message, message


def test_one_missing_expert_is_named(broken: Callable[..., Path]) -> None:
    source = broken("qwen3moe")
    edit_tensors(source, lambda t: t.pop("model.layers.1.mlp.experts.2.up_proj.weight"))
    with pytest.raises(errors.TensorMissing, match=r"layers\.1\.mlp\.experts\.2\.up_proj"):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen2")


def test_unknown_architectures_name_their_relatives() -> None:
    with pytest.raises(errors.UnsupportedArchitecture, match=r"nearest: .*Qwen3Moe"):
        find("Qwen3MoeForTokenClassification")


def test_what_is_left_out_says_why() -> None:
    """And is not taken by another row."""
    assert not {*REASONS} & {name for arch in ARCHITECTURES for name in arch.hf_names}
    with pytest.raises(errors.UnsupportedArchitecture, match="two axes, not three"):
        find("PLMForCausalLM")


def test_every_family_is_covered() -> None:
    """No half families: every row of the table has a case that agrees."""
    names: set[str] = set()
    for data in architectures().values():
        files, outtypes = data["recipe"]["files"], data["golden"]["outtypes"]
        for made in outtypes.values():  # Mistral 4 goes by the name of Mistral 3
            if made.get("kv", {}).get("general.architecture", {}).get("value") == "mistral4":
                names.add("Mistral4ForCausalLM")
            # known by other files than config.json
            decides = next((k for k in made.get("kv", {}) if k.endswith("decision.type")), None)
            if decides:
                names.add(DECIDING[made["kv"][decides]["value"]])
        config = json.loads(files.get("config.json", "{}"))
        names |= {*config.get("architectures", files)}  # params.json names itself
    llama = {"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"}
    lacking = [arch.hf_names for arch in ARCHITECTURES if not {*arch.hf_names} & (names | llama)]
    assert lacking == []


def test_rows_are_sound() -> None:
    """Names of dimensions and kinds of layers are known, and no two rows have one name for the same
    layers."""
    for arch in ARCHITECTURES:
        seen: set[tuple[str, str]] = set()
        for m in arch.maps:
            assert {*m.shape} <= arch.dims.keys(), (arch.hf_names, m.source)
            assert (m.source, m.layers) not in seen, (arch.hf_names, m.source)
            seen.add((m.source, m.layers))
    with pytest.raises(ValueError, match="unknown kind of layers"):
        replace(ARCHITECTURES[0], maps=(Map("x", (), lambda dims, shape, xid: (), "nowhere"),))


def test_exp_is_within_a_rounding_of_the_truth() -> None:
    x = np.linspace(-80, 80, 1 << 18, dtype=np.float32)
    true = np.exp(x.astype(np.float64))
    assert (np.abs(torch_exp(x) - true) <= 0.56 * np.spacing(true.astype(np.float32))).all()


@pytest.mark.parametrize("damage", ["", "missing", "shape"])
def test_experts_in_tensors_of_their_own_are_stacked(
    damage: str, checkpoint: Get, tmp_path: Path
) -> None:
    """Mixtral files from before llama.cpp stacked experts: quantized, they equal today's."""
    new, old = tmp_path / "new.gguf", tmp_path / "old.gguf"
    convert(checkpoint("mixtral-4x"), new, "bf16", None, ConversionOptions())
    header, data = read_header(new), _bytes(new)
    infos, blobs, offset = [], [], 0
    for t in header.tensors:
        parts = [(t.name, t.shape, data[t.name])]
        if "_exps" in t.name:
            n, *shape = t.shape
            size = len(data[t.name]) // n
            parts = [
                (
                    t.name.replace("_exps", f".{x}"),
                    tuple(shape),
                    data[t.name][x * size : (x + 1) * size],
                )
                for x in range(n)
            ]
            if t.name == "blk.1.ffn_up_exps.weight" and damage == "missing":
                del parts[2]
            if t.name == "blk.1.ffn_up_exps.weight" and damage == "shape":
                parts[2] = (parts[2][0], (shape[0] // 2, shape[1]), parts[2][2][: size // 2])
        for name, shape, blob in parts:
            infos.append(TensorInfo(name, tuple(shape), t.ggml_type, offset))
            blobs.append(blob.ljust(align(len(blob)), b"\0"))
            offset += len(blobs[-1])
    old.write_bytes(header_bytes(header.kv, infos) + b"".join(blobs))
    if damage:
        wanted = {"missing": errors.TensorMissing, "shape": errors.TensorShape}[damage]
        with pytest.raises(wanted, match=r"expert 2 of 4|ffn_up\.2\.weight differ"):
            from_gguf(old)
        return
    outputs = []
    for source in new, old:
        plan = plan_quantization(
            from_gguf(source), [(find_recipe("Q4_K_M"), tmp_path / f"{source.stem}-q.gguf")]
        )
        pipeline.execute(Schedule(plan, 2))
        outputs.append(plan.files[0].path.read_bytes())
    assert outputs[0] == outputs[1]
