"""Whole models in codings: what is kept in blocks computes in the real llama.cpp as what is
dequantized does, and what llama.cpp has no scales for is dequantized. (That the files are those of
llama.cpp's converter, case by case, is in test_architectures.py.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit import errors
from quantkit.architectures.rules import DEFAULTS, ConversionOptions
from quantkit.execution import pipeline
from quantkit.gguf.container import read_header
from quantkit.model import blocks
from quantkit.model.edits import keep_experts
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.model import Model
from quantkit.planning.build import Request, plan_conversion, plan_quantization
from quantkit.planning.schedule import Schedule
from quantkit.recipes.file_types import find_recipe
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.conftest import sha256
from tests.damage import edit_config, edit_tensors
from tests.runtime import Llama

Get = Callable[[str], Path]
PROMPT = [1, 5, 9, 33, 7, 100, 2]
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
Tensors = dict[str, Any]  # name -> dtype, shape, bytes


def model_of(source: Path, pre: str, options: ConversionOptions = DEFAULTS) -> Model:
    return from_checkpoint(CheckpointFiles.local(source), "bf16", pre, options)


def written(model: Model, path: Path) -> Path:
    pipeline.execute(Schedule(plan_conversion(model, "BF16", path), 2))
    return path


def log_probabilities(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = Llama(path, exact=True).log_probabilities(PROMPT)
    values = np.array([found[token] for token in sorted(found)])
    assert np.isfinite(values).all()
    return values


def types(path: Path) -> dict[str, str]:
    """Tensor -> its type in a file."""
    from gguf import GGMLQuantizationType

    return {t.name: GGMLQuantizationType(t.ggml_type).name for t in read_header(path).tensors}


def in_nvfp4(tensors: Tensors, words: str) -> None:
    """Matrices whose names have `words` in them, in NVFP4 with scales of their own."""
    rng = np.random.default_rng(7)
    for name, (_, shape, _) in list(tensors.items()):
        if words in name and name.endswith("_proj.weight"):
            rows, columns = shape
            stem = name.removesuffix("weight")
            codes = rng.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
            scales = rng.uniform(20, 200, (rows, columns // 16)).astype(ml_dtypes.float8_e4m3fn)
            tensors[name] = ("U8", list(codes.shape), codes.tobytes())
            tensors[f"{name}_scale"] = ("F8_E4M3", list(scales.shape), scales.tobytes())
            for beside, value in (f"{name}_scale_2", 2e-4), (f"{stem}input_scale", 0.02):
                factor = np.float32(value * rng.uniform(1, 2))
                tensors[beside] = ("F32", [], factor.tobytes())
                tensors.pop(f"{name}_scale_inv", None)


@pytest.mark.parametrize(
    ("case", "words"),
    [("qwen3moe", ""), ("qwen3-dense", ""), ("nemotron-h-moe", ".experts."), ("qwen3next", "")],
)
def test_nvfp4_computes_as_what_it_means(
    case: str,
    words: str,
    broken: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """llama.cpp multiplies with the scales beside the blocks; it rounds activations to 8 bits."""
    source = broken(case)
    edit_tensors(source, lambda t: in_nvfp4(t, words))
    edit_config(source, quantization_config=NVFP4)
    kept = model_of(source, "qwen2")
    assert any(t.stored == "NVFP4" for t in kept.tensors)
    monkeypatch.setattr(blocks, "SCALED", {})
    wide = model_of(source, "qwen2")
    assert {t.stored for t in wide.tensors} == {"BF16", "F32"}
    assert any("in NVFP4 are written in BF16" in note for note in wide.notes)
    a, b = (log_probabilities(written(m, tmp_path / n)) for m, n in ((kept, "a"), (wide, "b")))
    assert (a - b).std() < 0.1 * b.std()


def test_experts_left_out_take_their_scales_with_them(checkpoint: Get, tmp_path: Path) -> None:
    model = model_of(checkpoint("qwen3moe-ct-nvfp4"), "qwen2")
    path = written(keep_experts(model, [2, 0]), tmp_path / "a.gguf")
    shapes = {t.name: t.shape for t in read_header(path).tensors}
    assert shapes["blk.0.ffn_down_exps.scale"] == (2,)
    log_probabilities(path)


def test_other_formats_of_what_is_in_blocks(checkpoint: Get, tmp_path: Path) -> None:
    """Only if it is asked for; the scales stay beside the tensors, and are multiplied with."""
    model = model_of(checkpoint("qwen3moe-ct-nvfp4"), "qwen2")
    wanted = [(find_recipe("Q6_K"), tmp_path / "a.gguf")]
    with pytest.raises(errors.RecipeError, match=r"NVFP4 already .* --allow-requantize"):
        plan_quantization(model, wanted)
    plan = plan_quantization(model, wanted, Request(allow_requantize=True))
    pipeline.execute(Schedule(plan, 2))
    found = types(tmp_path / "a.gguf")
    assert found["blk.0.ffn_down_exps.weight"] == "Q6_K"
    assert found["blk.0.ffn_down_exps.scale"] == "F32"
    plain = log_probabilities(written(model, tmp_path / "b.gguf"))
    assert np.abs(log_probabilities(tmp_path / "a.gguf") - plain).max() < 0.3


@pytest.mark.parametrize("case", ["deepseek-v3-fp8", "deepseek-v3"])
def test_graphs_without_scales(case: str, broken: Callable[..., Path], tmp_path: Path) -> None:
    """A DeepSeek-R1 in NVFP4: llama.cpp's own file computes NaN, or does not load."""
    source = broken(case)
    edit_tensors(source, lambda t: in_nvfp4(t, ".mlp."))
    settings = {"quantization_config": NVFP4}
    if case == "deepseek-v3-fp8":  # attention stays FP8, in blocks
        settings["quantization_config"] = {**NVFP4, "weight_block_size": [128, 128]}
    edit_config(source, **settings)
    model = model_of(source, "deepseek-v3")
    assert any("NVFP4 are written in BF16: llama.cpp computes" in note for note in model.notes)
    path = written(model, tmp_path / "a.gguf")
    assert {"NVFP4"}.isdisjoint(types(path).values())
    assert not any("scale" in name for name in types(path))
    log_probabilities(path)


def test_layers_that_predict_are_dequantized(broken: Callable[..., Path], tmp_path: Path) -> None:
    """llama.cpp refuses a file with scales in layers that it does not predict with."""
    source = broken("qwen35moe-nvfp4")
    model = model_of(source, "qwen35")
    path = written(model, tmp_path / "a.gguf")
    last = int(read_header(path).get("qwen35moe.block_count")) - 1
    kinds = {n: kind for n, kind in types(path).items() if n.startswith(f"blk.{last}.")}
    assert "NVFP4" in types(path).values()
    assert "NVFP4" not in kinds.values()
    log_probabilities(path)


def test_what_the_graph_has_no_scales_of_is_joined(
    broken: Callable[..., Path], checkpoint: Get
) -> None:
    """Queries, keys and values that are dequantized anyway, and nothing that stays in blocks: that
    is what llama.cpp's converter leaves apart (cases that end in -joined)."""
    asked = ConversionOptions(fuse_qkv=True)
    model = model_of(checkpoint("llama-nvfp4"), "llama-bpe", options=asked)
    assert {t.name: t.stored for t in model.tensors}["blk.0.attn_q.weight"] == "NVFP4"
    source = broken("phimoe")
    edit_tensors(source, lambda t: in_nvfp4(t, ".self_attn."))
    edit_config(source, quantization_config=NVFP4)
    model = model_of(source, None, options=asked)
    found = {t.name: t.stored for t in model.tensors}
    assert found["blk.0.attn_qkv.weight"] == "BF16"


def test_scales_of_activations_and_caches(broken: Callable[..., Path], tmp_path: Path) -> None:
    """Static FP8 converts as dynamic FP8 does, where llama.cpp's converter stops."""
    source = broken("qwen3moe-ct-fp8-block")
    plain = written(model_of(source, "qwen2"), tmp_path / "a.gguf")

    def add(tensors: Tensors) -> None:
        one = ("F32", [1], np.ones(1, np.float32).tobytes())
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            stem = name.removesuffix("weight")
            tensors[f"{stem}input_scale"] = one
            for kind in "kv":
                if f".{kind}_proj." in name:
                    tensors[name.replace(f"{kind}_proj.weight", f"{kind}_scale")] = one

    edit_tensors(source, add)
    path = written(model_of(source, "qwen2"), tmp_path / "b.gguf")
    assert sha256(path) == sha256(plain)


def test_float64(broken: Callable[..., Path], tmp_path: Path) -> None:
    """Weights of 64 bits are those of 32 bits that are nearest; integers are refused by name."""
    source = broken("qwen3moe")
    router = "model.layers.0.mlp.gate.weight"
    rng = np.random.default_rng(7)

    def edit(tensors: Tensors, dtype: Any) -> None:
        values = rng.normal(0, 1, tensors[router][1])
        kind = {"float64": "F64", "float32": "F32", "int64": "I64"}[np.dtype(dtype).name]
        tensors[router] = (kind, tensors[router][1], values.astype(dtype).tobytes())

    made = []
    for dtype in np.float64, np.float32:
        rng = np.random.default_rng(7)
        edit_tensors(source, lambda t, dtype=dtype: edit(t, dtype))
        model = model_of(source, "qwen2")
        made.append(sha256(written(model, tmp_path / np.dtype(dtype).name)))
    assert made[0] == made[1]
    edit_tensors(source, lambda t: edit(t, np.int64))
    with pytest.raises(errors.UnsupportedSource, match=r"mlp\.gate\.weight is I64"):
        model_of(source, "qwen2")


def in_gptq(tensors: Tensors, bias: float) -> None:
    """Experts in GPTQ with a bias each, as AutoGPTQ adds them."""
    rng = np.random.default_rng(7)
    for name in [n for n in tensors if ".experts." in n]:
        rows, columns = tensors.pop(name)[1]
        stem = name.removesuffix("weight")
        codes, zeros = (
            rng.integers(-(2**31), 2**31, shape).astype(np.int32)
            for shape in ((columns // 8, rows), (columns // 32, rows // 8))
        )
        scales = rng.uniform(0.001, 0.002, (columns // 32, rows)).astype(np.float16)
        tensors[f"{stem}qweight"] = "I32", [*codes.shape], codes.tobytes()
        tensors[f"{stem}qzeros"] = "I32", [*zeros.shape], zeros.tobytes()
        tensors[f"{stem}scales"] = "F16", [*scales.shape], scales.tobytes()
        tensors[f"{stem}bias"] = "F16", [rows], np.full(rows, bias, np.float16).tobytes()


def test_biases_that_a_tool_adds(broken: Callable[..., Path], tmp_path: Path) -> None:
    """Zeros are left out, as if they were not there; others have no place."""
    source = broken("qwen3moe")
    edit_tensors(source, lambda t: in_gptq(t, 0.0))
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    edit_config(source, quantization_config=settings)
    a = written(model_of(source, "qwen2"), tmp_path / "a.gguf")
    biases: Tensors = {}

    def without(tensors: Tensors) -> None:
        for name in [n for n in tensors if ".experts." in n and n.endswith(".bias")]:
            biases[name] = tensors.pop(name)

    edit_tensors(source, without)
    assert sha256(written(model_of(source, "qwen2"), tmp_path / "b.gguf")) == sha256(a)
    name, (kind, shape, _) = biases.popitem()
    one = np.full(shape, 0.5, np.float16).tobytes()
    edit_tensors(source, lambda t: t.update({name: (kind, shape, one)}))
    with pytest.raises(errors.TensorUnknown, match=r"bias has no place"):
        model_of(source, "qwen2")


def taken_apart(tensors: Tensors, turned: bool) -> None:
    """Stacked experts as tensors of their own, as linear layers have them."""
    for name in [name for name in tensors if ".experts." in name and name.endswith("_proj")]:
        kind, shape, data = tensors.pop(name)
        stem, _, part = name.rpartition(".")
        values = np.frombuffer(data, np.uint16).reshape(shape)
        for i, matrix in enumerate(values.transpose(0, 2, 1) if turned else values):
            halves = {part: matrix}
            if part == "gate_up_proj":
                gate, up = np.split(matrix, 2)
                halves = {"gate_proj": gate, "up_proj": up}
            for half, rows in halves.items():
                tensors[f"{stem}.{i}.{half}.weight"] = kind, [*rows.shape], rows.tobytes()


@pytest.mark.parametrize(
    ("case", "pre", "turned"),
    [("llama4", "llama4", True), ("qwen3vlmoe", "qwen2", True), ("gemma4-moe", "qwen2", False)],
)
def test_experts_that_quantizers_take_apart(
    case: str, pre: str, turned: bool, broken: Callable[..., Path], tmp_path: Path
) -> None:
    """llm-compressor and AutoAWQ quantize linear layers: stacks of experts become such first."""
    from gguf import GGUFReader

    source = broken(case)
    found = []
    for path in tmp_path / "a.gguf", tmp_path / "b.gguf":
        written(model_of(source, pre), path)
        reader = GGUFReader(path)
        found.append({t.name: (t.data.shape, t.data.copy()) for t in reader.tensors})
        if not found[1:]:
            edit_tensors(source, lambda t: taken_apart(t, turned))
    stacked, apart = found
    for name in [name for name in stacked if name.endswith("gate_up_exps.weight")]:
        halves = [apart.pop(name.replace("gate_up", half))[1] for half in ("gate", "up")]
        both = np.concatenate(halves, axis=1)
        apart[name] = both.shape, both
    assert stacked.keys() == apart.keys()
    for name, (shape, data) in stacked.items():
        assert apart[name][0] == shape
        assert (apart[name][1] == data).all(), name


def as_linear_layers(tensors: Tensors) -> None:
    """gpt-oss's experts one by one, `[out, in]`, as bitsandbytes finds them; a router in a module
    of its own."""
    for name in [name for name in tensors if ".mlp." in name]:
        kind, shape, data = tensors.pop(name)
        values = np.frombuffer(data, np.uint16).reshape(shape)
        stem, _, part = name.rpartition(".")
        if stem.endswith("router"):
            tensors[f"{stem}.linear.{part}"] = kind, shape, data
            continue
        kept, end = part.removesuffix("_bias"), "bias" if part.endswith("_bias") else "weight"
        for i, rows in enumerate(values):
            one = rows.T if end == "weight" else rows
            tensors[f"{stem}.{kept}s.{i}.{end}"] = kind, [*one.shape], one.tobytes()


def test_experts_of_gpt_oss_one_by_one(broken: Callable[..., Path], tmp_path: Path) -> None:
    source = broken("gpt-oss-bf16")
    a = written(model_of(source, "gpt-4o"), tmp_path / "a.gguf")
    edit_tensors(source, as_linear_layers)
    b = written(model_of(source, "gpt-4o"), tmp_path / "b.gguf")
    assert sha256(a) == sha256(b)


def test_weights_that_are_rounded_as_the_model_runs(broken: Callable[..., Path]) -> None:
    """BitNet's layers in another family, before they are packed: not the weights that compute."""
    source = broken()
    online = {"quant_method": "bitnet", "quantization_mode": "online"}
    edit_config(source, quantization_config=online)
    with pytest.raises(errors.ConfigError, match="three values as the model runs"):
        model_of(source, "gpt-2")


@pytest.mark.parametrize("words", ["down_proj", "gate_proj", "experts.3."])
def test_some_of_the_experts_in_blocks(
    words: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    """A stack of a layer in NVFP4, and the others not; one with experts of both is dequantized."""
    source = broken("qwen3moe")
    edit_tensors(source, lambda t: in_nvfp4(t, words))
    edit_config(source, quantization_config=NVFP4)
    found = types(written(model_of(source, "qwen2"), tmp_path / "a.gguf"))
    for part in ("down", "gate", "up"):
        kind = "NVFP4" if part in words else "BF16"
        assert found[f"blk.1.ffn_{part}_exps.weight"] == kind
    log_probabilities(tmp_path / "a.gguf")


def test_blocks_beside_another_coding(broken: Callable[..., Path]) -> None:
    """llama.cpp's converter labels gpt-oss as MXFP4 only where `quant_method` says it."""
    source = broken("gpt-oss")
    for method, label in ("mxfp4", 38), ("fp8", 32):
        edit_config(source, quantization_config={"quant_method": method})
        model = model_of(source, "gpt-4o")
        assert any(t.stored == "MXFP4" for t in model.tensors)
        assert {item.key: item.value for item in model.kv}["general.file_type"] == label
