"""Against transformers' own models of the same checkpoints: what llama.cpp computes with our files,
and the spelling that transformers keeps in memory, in which merge tools write.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.execution import pipeline
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.planning.build import plan_conversion
from quantkit.planning.schedule import Schedule
from quantkit.source.checkpoint_files import CheckpointFiles
from tests import golden
from tests.checkpoints import architectures, write_safetensors
from tests.damage import edit_config, edit_tensors
from tests.runtime import Llama

pytest.importorskip("transformers")
# transformers and torch warn of their own matters
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

PROMPT = [3, 141, 59, 265, 358, 97, 93, 238, 46, 264, 338, 327, 95, 28, 84, 197]

# changes to config.json
NORMED = {"norm_topk_prob": True}  # llama.cpp always brings the weights of experts to a sum of one
ROTATED = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}  # not read by 5.23
TWO_OF_FOUR = {"num_experts_per_tok": 2}  # transformers' default is 8
# gpt-oss does not round the ends of YaRN's ramp to whole channels, as llama.cpp always does
ROUNDED = {"rope_scaling": {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True,
    "original_max_position_embeddings": 1024,
}}  # fmt: skip

# Case, changes, and the bound on the largest difference of a log-probability. Weights and cache are
# float32, so that little but the order of additions differs: 4e-5 was the most that was measured.
ORDER = 1e-4
TABLE = 0.05  # ggml takes GELU from a table of 16-bit floats: 0.034
CASES: list[tuple[str, dict[str, Any], float]] = [
    *((case, {}, ORDER) for case in (
        "mixtral-4x", "mixtral-4x-tf5fused", "qwen2-dense", "qwen3-dense", "qwen35-dense", "phi3",
        "granite-dense", "qwen2moe", "qwen3moe", "qwen3next", "qwen35moe", "olmoe", "deepseek-v2",
        "deepseek-v2-lite-27l", "deepseek-v3", "glm4moe", "solar-open",
        "minimax-m2", "llama4", "granitemoe", "granitemoeshared", "granitehybrid", "nemotron-h-moe",
        "deepseek-v3-tf5fused", "glm4moelite", "dots1-tf5fused", "jamba", "lfm2moe", "hunyuan-moe",
        "ernie45moe", "exaone-moe", "afmoe", "cohere2moe", "glm5", "glm52", "glm53-flash",
        "deepseek-v32-no-mtp", "minimax-m3", "mistral4",
        "llama-plain", "arcee", "smollm3",
        "apertus", "olmo1", "olmo2", "olmo3", "seed-oss", "cohere", "cohere2", "glm4-dense", "lfm2",
        "falcon-h1", "falcon-h1-norm", "ernie45", "nemotron", "minicpm3", "stablelm2-1.6b",
        "stablelm-3b", "stablelm2-12b", "starcoder1", "mistral-tekken", "hunyuan-dense2",
        "mamba-hf", "mamba2", "kimi-linear", "jais2", "granite-swa-theta", "youtu", "glm-hf",
        "granitemoe-swa",
    )),
    # without windows; with them only 64 layers: see below
    ("exaone4-1.2b", {"layer_types": ["full_attention"] * 4}, ORDER),
    # the norm of queries and keys takes the model's epsilon in llama.cpp, and transformers 1e-6
    ("kimi-linear-48b", {}, 0.003),  # 0.0012
    ("bloom", {}, TABLE),
    ("pythia", {}, TABLE),
    ("gpt-neox-seq", {}, TABLE),
    ("falcon-7b", {}, TABLE),
    ("falcon-40b", {}, TABLE),
    ("falcon-mamba", {}, TABLE),
    ("gpt2-ft", {}, TABLE),
    ("falcon-11b", {}, TABLE),
    ("qwen3moe-tf5fused", NORMED, ORDER),
    ("glm4moe-tf5fused", TWO_OF_FOUR, ORDER),
    ("dbrx", ROTATED, ORDER),
    ("gemma2-dense", {}, TABLE),
    ("gemma3-dense", {}, TABLE),
    ("gemma1", {}, TABLE),
    ("phi2", {}, TABLE),
    ("starcoder2", {}, TABLE),
    ("gemma4-dense", {}, TABLE),
    ("gemma4-moe", {}, TABLE),
    ("gemma4-moe-tf5", {}, TABLE),
    ("gpt-oss-bf16", ROUNDED, ORDER),
    ("gpt-oss-bf16", {}, 0.02),  # 0.009
    ("gpt-oss", {}, 0.1),  # 0.05; MXFP4 is multiplied with activations rounded to 8 bits
]  # fmt: skip


def convert(source: Path, path: Path, case: str) -> Path:
    pre = architectures()[case]["golden"]["pre"] if case in architectures() else None
    model = from_checkpoint(
        CheckpointFiles.local(source), "f32", pre, ConversionOptions(mtp="without")
    )
    pipeline.execute(Schedule(plan_conversion(model, "F32", path), 2))
    return path


def their_model(source: Path) -> Any:
    """transformers' model, in float32."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        Mxfp4Config,
    )

    config = AutoConfig.from_pretrained(source)
    is_mxfp4 = hasattr(config, "quantization_config")
    more: dict[str, Any] = {}
    if is_mxfp4:
        more = {"quantization_config": Mxfp4Config(dequantize=True)}
    kind: Any = AutoModelForCausalLM
    if hasattr(config, "vision_config"):  # of the images' part a few tensors stand for all
        kind, more = AutoModelForImageTextToText, {**more, "ignore_mismatched_sizes": True}
    return kind.from_pretrained(source, dtype=torch.float32, **more).eval()


def difference(source: Path, path: Path, case: str) -> float:
    """The largest of a log-probability after PROMPT."""
    import torch

    with torch.no_grad():
        logits = their_model(source)(torch.tensor([PROMPT])).logits[0, -1]
    expected = torch.log_softmax(logits.double(), 0).numpy()
    found = Llama(convert(source, path, case), exact=True).log_probabilities(PROMPT)
    ours = np.array([found[token] for token in range(len(expected))])
    return float(np.abs(ours - expected).max())


@pytest.mark.parametrize(("case", "changes", "bound"), CASES)
def test_same_log_probabilities(
    case: str, changes: dict[str, Any], bound: float, broken: Callable[[str], Path], tmp_path: Path
) -> None:
    source = broken(case)
    edit_config(source, **changes)
    assert difference(source, tmp_path / "model.gguf", case) < bound


def test_a_head_that_counts_as_tied(broken: Callable[[str], Path], tmp_path: Path) -> None:
    """HunYuan's output matrix is not read where config.json says that the embedding serves as one;
    transformers takes what is in the checkpoint."""
    source = broken("hunyuan-dense")
    edit_tensors(source, lambda tensors: tensors.pop("lm_head.weight"))
    assert difference(source, tmp_path / "model.gguf", "hunyuan-dense") < ORDER


def test_windows_of_64_layers(broken: Callable[[str], Path], tmp_path: Path) -> None:
    """EXAONE 4 slides, and leaves every fourth layer without rotary positions, in llama.cpp only as
    deep as it was released. Prompts are longer than the window."""
    source = broken("exaone4")
    shapes = {
        "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64), "self_attn.q_norm": (16,), "self_attn.k_norm": (16,),
        "post_attention_layernorm": (64,), "post_feedforward_layernorm": (64,),
        "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64),
        "mlp.down_proj": (64, 128),
    }  # fmt: skip
    kinds = [*["sliding_attention"] * 3, "full_attention"] * 16
    edit_config(source, num_hidden_layers=64, hidden_size=64, head_dim=16, intermediate_size=128,
                layer_types=kinds, sliding_window=8)  # fmt: skip
    rng = np.random.default_rng(4)

    def deep(tensors: dict[str, Any]) -> None:
        tensors.clear()
        named = {f"model.layers.{bid}.{name}": s for bid in range(64) for name, s in shapes.items()}
        ends = {"model.embed_tokens": (520, 64), "lm_head": (520, 64), "model.norm": (64,)}
        for name, shape in {**named, **ends}.items():
            x = rng.normal(float(len(shape) == 1), 0.1, shape).astype(np.float32)
            tensors[f"{name}.weight"] = ("F32", list(shape), x.tobytes())

    edit_tensors(source, deep)
    assert difference(source, tmp_path / "model.gguf", "exaone4") < ORDER


# with tensors of its own for each expert, or the same names as in memory; spellings that only
# transformers' memory has, or (falcon-40b) a head that it does not list
OTHER = ("nemotron-h-moe", "glm53-flash", "kimi-linear", "kimi-linear-48b", "falcon-40b")
SAME = ("tf5", "dense", "mixtral-4x-tf5fused", "gpt-oss", "granite-dense", "phi3", "lite-27l")
SPELLINGS = [
    (case, changes)
    for case, changes, _ in CASES
    if not any(word in case for word in SAME) and case not in OTHER
]


@pytest.mark.parametrize(("case", "changes"), SPELLINGS)
def test_as_transformers_keeps_it(
    case: str, changes: dict[str, Any], broken: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every tensor, in the same order, from the names and shapes of the model in memory."""
    source = broken(case)
    edit_config(source, **changes)
    expected = golden.tensors(convert(source, tmp_path / "a.gguf", case))
    model = their_model(source)
    weights = {
        name: ("F32", list(t.shape), t.float().numpy().tobytes())
        for name, t in model.state_dict().items()
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }
    for file in source.glob("model*.safetensors*"):
        file.unlink()
    write_safetensors(source / "model.safetensors", weights)
    assert golden.tensors(convert(source, tmp_path / "b.gguf", case)) == expected
