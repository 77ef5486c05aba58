"""A config.json that leaves a key out, or has null in its place, and one as transformers 5 saves
it. What is expected is what llama.cpp's converter writes (with transformers 4.57.6 or 5.23), but
where it stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.model import Model
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.checkpoints import architectures
from tests.damage import edit_config, edit_tensors

Broken = Callable[..., Path]
GONE: Any = object()


def _model(source: Path, case: str) -> Model:
    pre = architectures()[case]["golden"]["pre"]
    return from_checkpoint(CheckpointFiles.local(source), "bf16", pre)


def _changed(source: Path, place: str, value: Any) -> None:
    """Sets a key, of a table in a table (`text_config.rope_parameters.factor`), or takes it out."""
    config = CheckpointFiles.local(source).json("config.json")
    *tables, last = place.split(".")
    inner = config
    for name in tables:
        inner = inner[name]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    (source / "config.json").write_text(json.dumps(config))


YARN = {
    "mistral4.rope.scaling.type": "yarn",
    "mistral4.rope.scaling.factor": 128.0,
    "mistral4.rope.scaling.original_context_length": 8192,
    "mistral4.rope.freq_base": 10000.0,
}


@pytest.mark.parametrize(
    ("case", "place", "value", "expected"),
    [
        ("gemma4-assistant", "text_config.max_position_embeddings", GONE,
         {"gemma4-assistant.context_length": 131072}),
        ("gemma4-unified", "text_config.hidden_size_per_layer_input", None,
         {"gemma4.embedding_length_per_layer_input": 0}),
        ("mistral4", "text_config.rope_parameters", GONE, YARN),
        ("mistral4", "text_config.rope_parameters", None, YARN),
        ("ministral3", "text_config.rope_parameters.rope_theta", GONE,
         {"mistral3.rope.freq_base": 10000.0}),
        ("mpt", "attn_config.alibi", GONE, {"mpt.attention.max_alibi_bias": 8.0}),
        ("mpt", "attn_config.alibi", None, {"mpt.attention.max_alibi_bias": 0.0}),
        ("gpt-neox-seq", "use_parallel_residual", None, {"gptneox.use_parallel_residual": False}),
        ("hy3-no-shared", "route_norm", None, {"hy_v3.expert_weights_norm": False}),
        ("glm53-f16", "text_config.index_kpool_always_select_tail", None,
         {"glm5-next.attention.indexer.kpool_select_tail": False}),
        ("glmocr-no-head-dim", "text_config.rms_norm_eps", GONE,
         {"glm4.attention.layer_norm_rms_epsilon": 9.999999747378752e-06}),
        ("embedding-gemma2", "text_config.max_position_embeddings", GONE,
         {"gemma-embedding2.context_length": 262144}),
        ("afmoe", "num_dense_layers", GONE, {"afmoe.leading_dense_block_count": 1}),
        ("bloom-named", "n_head", GONE, {"bloom.attention.head_count": 8}),
        ("cohere2moe", "num_experts_per_tok", GONE, {"cohere2moe.expert_used_count": 2}),
        ("dbrx", "ffn_config.moe_num_experts", GONE, {"dbrx.expert_count": 4}),
        ("dbrx", "ffn_config.moe_top_k", GONE, {"dbrx.expert_used_count": 1}),
        ("hunyuan-moe-hub", "n_group", False, {"hunyuan-moe.expert_group_count": 0}),
        ("deepseek-v4", "scoring_func", GONE, {"deepseek4.expert_gating_func": 4}),
        ("deepseek-v4", "rms_norm_eps", GONE,
         {"deepseek4.attention.layer_norm_rms_epsilon": 9.999999974752427e-07}),
    ],
)  # fmt: skip
def test_what_is_written(
    case: str, place: str, value: Any, expected: dict[str, Any], broken: Broken
) -> None:
    source = broken(case)
    _changed(source, place, value)
    found = {item.key: item.value for item in _model(source, case).kv}
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize("case", ["mistral4", "gpt-oss-bf16", "deepseek-v2-lite"])
def test_no_length_that_positions_were_scaled_from(case: str, broken: Broken) -> None:
    """llama.cpp's converter stops; without the key its runtime takes the new length for the old."""
    source = broken(case)
    config = CheckpointFiles.local(source).json("config.json")
    place = "rope_scaling" if "rope_scaling" in config else "text_config.rope_parameters"
    _changed(source, f"{place}.original_max_position_embeddings", None)
    with pytest.raises(errors.ConfigError, match="needs 'original_max_position_embeddings'"):
        _model(source, case)


@pytest.mark.parametrize("case", ["glmocr-text", "glm4v"])
def test_axes_that_are_null_are_none(case: str, broken: Broken) -> None:
    """Rows stay as they are, as where the key is not there; llama.cpp's converter stops."""
    source, made = broken(case), []
    config = CheckpointFiles.local(source).json("config.json")
    outer = config.get("text_config", config)
    rope = "rope_parameters" if "rope_parameters" in outer else "rope_scaling"
    prefix = "text_config." if "text_config" in config else ""
    for value in (None, GONE):
        _changed(source, f"{prefix}{rope}.mrope_section", value)
        made.append(_model(source, case))
    assert made[0].tensors == made[1].tensors
    assert made[0].kv == made[1].kv


def test_nemotron_h_without_experts_as_transformers_saves_it(
    broken: Broken, checkpoint: Broken
) -> None:
    """Numbers of experts stand in every config then. llama.cpp's converter writes widths of zero
    (4.57.6), or calls it a mixture (5.23)."""
    case = "nemotron-h-dense"
    source = broken(case)
    config = CheckpointFiles.local(source).json("config.json")
    names = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
    edit_config(
        source,
        layers_block_type=[names[kind] for kind in config["hybrid_override_pattern"]],
        hybrid_override_pattern=None,
        num_hidden_layers=None,
        mtp_layers_block_type=["full_attention", "moe"],
        moe_intermediate_size=7688,
        moe_shared_expert_intermediate_size=7688,
        n_group=1,
        n_routed_experts=8,
        n_shared_experts=1,
        norm_topk_prob=True,
        num_experts_per_tok=2,
        num_nextn_predict_layers=0,
        routed_scaling_factor=1.0,
        topk_group=1,
    )
    found, released = _model(source, case), _model(checkpoint(case), case)
    assert (found.kv, found.tensors) == (released.kv, released.tensors)


def test_step_3_5_as_transformers_saves_it(broken: Broken, checkpoint: Broken) -> None:
    """llama.cpp's converter stops at it."""
    case = "step35"
    source = broken(case)
    turned = {"full_attention": (0.5, 5000000.0), "sliding_attention": (1.0, 10000.0)}
    rope = {
        kind: {"rope_type": "default", "partial_rotary_factor": part, "rope_theta": theta}
        for kind, (part, theta) in turned.items()
    }
    config = CheckpointFiles.local(source).json("config.json")
    rope["full_attention"] |= config["rope_scaling"]
    gone = (
        "num_attention_groups", "partial_rotary_factors", "attention_other_setting", "rope_theta",
        "rope_scaling", "moe_num_experts", "moe_top_k", "moe_layers_enum",
    )  # fmt: skip
    edit_config(
        source,
        **dict.fromkeys(gone),
        layer_types=config["layer_types"][:4],
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        mtp_layer_types=["sliding_attention"],
        n_routed_experts=4,
        num_experts_per_tok=2,
        num_key_value_heads=2,
        num_sliding_attention_heads=6,
        rope_parameters=rope,
        swiglu_limits=config["swiglu_limits"][:4],
        swiglu_limits_shared=config["swiglu_limits_shared"][:4],
    )
    found, released = _model(source, case), _model(checkpoint(case), case)
    assert (found.kv, found.tensors) == (released.kv, released.tensors)


V4_ROPE = {
    "main": {"partial_rotary_factor": 0.25, "rope_theta": 10000, "rope_type": "default"},
    "compress": {
        "attention_factor": 1.0, "beta_fast": 32, "beta_slow": 1, "factor": 16,
        "original_max_position_embeddings": 65536, "partial_rotary_factor": 0.25,
        "rope_theta": 160000, "rope_type": "yarn", "type": "yarn",
    },
}  # fmt: skip


def _v4(source: Path, **changes: Any) -> Path:
    kinds = ("compressed_sparse_attention", "heavily_compressed_attention")
    edit_config(
        source,
        **dict.fromkeys(("num_hash_layers", "rope_scaling", "compress_ratios")),
        compress_rates=dict(zip(kinds, (4, 128), strict=True)),
        layer_types=["sliding_attention", *kinds, kinds[0]],
        mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
        partial_rotary_factor=0.25,
    )
    edit_config(source, **{"rope_parameters": V4_ROPE, **changes})
    return source


def test_deepseek_v4_as_transformers_saves_it(broken: Broken, checkpoint: Broken) -> None:
    """llama.cpp's converter stops at it."""
    case = "deepseek-v4"
    found, released = _model(_v4(broken(case)), case), _model(checkpoint(case), case)
    assert (found.kv, found.tensors) == (released.kv, released.tensors)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mlp_layer_types": ["moe", "hash_moe", "moe", "moe"]}, "'hash_moe' after other layers"),
        ({"layer_types": ["full_attention"] * 4}, "'full_attention', which compresses as"),
        ({"rope_parameters": {"main": V4_ROPE["main"]}}, "must have 'main' and 'compress'"),
        ({"rope_parameters": {**V4_ROPE, "main": V4_ROPE["compress"]}}, "not those of DeepSeek-V4"),
    ],
)
def test_deepseek_v4_of_another_kind(changes: dict[str, Any], words: str, broken: Broken) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        _model(_v4(broken("deepseek-v4"), **changes), "deepseek-v4")


def test_rotary_settings_by_kinds_that_are_not_known(broken: Broken) -> None:
    """None of them would be written."""
    source = broken("qwen3moe")
    edit_config(source, rope_parameters={"main": {"rope_type": "yarn", "factor": 4.0}})
    with pytest.raises(errors.ConfigError, match="of a kind that is not known: main"):
        _model(source, "qwen3moe")


def test_gpt_neox_as_transformers_saves_it(broken: Broken, checkpoint: Broken) -> None:
    """llama.cpp's converter takes a quarter of each head (4.57.6), or stops (5.23)."""
    case = "gpt-neox-seq"
    source = broken(case)
    rope = {"partial_rotary_factor": 1.0, "rope_theta": 20000, "rope_type": "default"}
    edit_config(source, rotary_pct=None, rotary_emb_base=None, rope_parameters=rope)
    found, released = (
        {item.key: item.value for item in _model(where, case).kv if item.key.startswith("gptneox")}
        for where in (source, checkpoint(case))
    )
    assert found == released
    assert found["gptneox.rope.dimension_count"] == 64


@pytest.mark.parametrize(
    ("full", "period"), [((0, 3), 3), ((0, 2), 2), ((0, 2, 3), None), ((1,), None)]
)
def test_modern_bert_as_transformers_saves_it(
    full: tuple[int, ...], period: int | None, broken: Broken
) -> None:
    """llama.cpp's converter says three, or nothing, whatever the layers are."""
    case = "modernbert-reranker"
    source = broken(case)
    layers = CheckpointFiles.local(source).json("config.json")["num_hidden_layers"]
    kinds = ["full" if bid in full else "sliding" for bid in range(layers)]
    edit_config(source, layer_types=[f"{kind}_attention" for kind in kinds])
    if period is None:
        with pytest.raises(errors.ConfigError, match="first of every so many"):
            _model(source, case)
        return
    found = {item.key: item.value for item in _model(source, case).kv}
    assert found["modern-bert.attention.sliding_window_pattern"] == period


@pytest.mark.parametrize("kinds", [["dense", "sparse"], None])
def test_glm_4_7_flash_without_a_number_of_dense_layers(
    kinds: list[str] | None, broken: Broken, checkpoint: Broken
) -> None:
    """The class has `mlp_layer_types` in its place, with one dense layer by itself; llama.cpp's
    converter writes 0, and its runtime stops."""
    case = "glm4moelite"
    source = broken(case)
    edit_config(source, first_k_dense_replace=None, **({"mlp_layer_types": kinds} if kinds else {}))
    found, released = _model(source, case), _model(checkpoint(case), case)
    assert (found.kv, found.tensors) == (released.kv, released.tensors)


@pytest.mark.parametrize("case", ["glm5", "glm53-flash", "exaone-moe", "deepseek-v32"])
def test_layers_without_experts_are_those_that_are_listed(
    case: str, broken: Broken, checkpoint: Broken
) -> None:
    """Whatever `first_k_dense_replace` says: the classes do not ask it then, and write their own
    number; llama.cpp's converter takes that, and its file does not load."""
    source, released = broken(case), _model(checkpoint(case), case)
    config = CheckpointFiles.local(source).json("config.json")
    place = "text_config." if "text_config" in config else ""
    table = config["text_config"] if place else config
    dense, layers = table["first_k_dense_replace"], table["num_hidden_layers"]
    kinds = ["dense"] * dense + ["sparse"] * (layers - dense)
    _changed(source, f"{place}mlp_layer_types", kinds)
    _changed(source, f"{place}first_k_dense_replace", dense + 1)
    found = _model(source, case)
    assert (found.kv, found.tensors) == (released.kv, released.tensors)
    _changed(source, f"{place}mlp_layer_types", ["sparse", "dense"] * layers)
    with pytest.raises(errors.ConfigError, match="must be dense layers, then sparse ones"):
        _model(source, case)


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_muse_glimmer_without_a_rotary_base(base: float, broken: Broken) -> None:
    """Its layers turn by `layer_rope_theta`, and llama.cpp by 10,000."""
    source = broken("muse-glimmer")
    _changed(source, "text_config.rope_parameters", GONE)
    _changed(source, "text_config.layer_rope_theta", [base, base, base, 0])
    if base != 10000:
        with pytest.raises(errors.ConfigError, match=r"must be 10000\.0 in layers with a window"):
            _model(source, "muse-glimmer")
        return
    found = {item.key: item.value for item in _model(source, "muse-glimmer").kv}
    assert found.get("muse-glimmer.rope.freq_base", base) == base


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": None, "factor": 4.0},
        {"rope_type": None, "type": "yarn", "factor": 4.0},
        {"full_attention": {"type": "linear", "factor": 4.0}},
    ],
)
@pytest.mark.parametrize("case", ["qwen3-dense", "llama-plain"])
def test_a_factor_without_a_type(case: str, rope: dict[str, Any], broken: Broken) -> None:
    """llama.cpp's converter stops, or scales nothing; transformers has no such type."""
    source = broken(case)
    edit_config(source, rope_parameters=rope)
    with pytest.raises(errors.ConfigError, match=r"a 'factor' of 4\.0 and no 'rope_type'"):
        _model(source, case)


@pytest.mark.parametrize(("case", "early"), [("deepseek-v2", True), ("deepseek-v3", False)])
def test_a_head_width_that_is_null(case: str, early: bool, broken: Broken) -> None:
    """llama.cpp's converter writes it where the class has it, and where the family does; the first
    place counts."""
    source = broken(case)
    _changed(source, "head_dim", None)
    keys = [item.key for item in _model(source, case).kv]
    place = keys.index("deepseek2.attention.key_length")
    assert (place < keys.index("deepseek2.attention.kv_lora_rank")) == early


SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
BASE = {"rope_type": "default", "rope_theta": 50000.0}


@pytest.mark.parametrize(
    ("new", "old", "agree"),
    [
        (BASE, SCALED, False),
        (BASE, {"type": "linear", "factor": 4.0}, False),
        ({**BASE, **SCALED}, {"rope_type": "default"}, False),
        ({**BASE, **SCALED}, {**SCALED, "factor": 2.0}, False),
        ({"full_attention": BASE, "sliding_attention": BASE}, SCALED, False),
        ({**BASE, **SCALED}, {"type": "yarn", **SCALED}, True),
        (BASE, {"type": "default"}, True),
        (BASE, {}, True),
        ({}, SCALED, True),
    ],
)
def test_two_tables_of_rotary_settings(
    new: dict[str, Any], old: dict[str, Any], agree: bool, broken: Broken
) -> None:
    """YaRN that is added as for transformers 4 to what transformers 5 has saved: llama.cpp's
    converter loses it with the one, and the base with the other."""
    source = broken("qwen3-dense")
    edit_config(source, rope_parameters=new, rope_scaling=old)
    if agree:
        keys = {item.key: item.value for item in _model(source, "qwen3-dense").kv}
        scaled = "factor" in {**new, **old}
        assert keys.get("qwen3.rope.scaling.factor") == (4.0 if scaled else None)
        return
    with pytest.raises(errors.ConfigError, match="says otherwise than 'rope_parameters'"):
        _model(source, "qwen3-dense")


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({}, None),
        ({"attention_factor": 1.1386294361119891}, None),
        ({"attention_factor": 1.0}, "queries and keys are multiplied by 1.139, not 1"),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, "multiplied by 1.139, not 1"),
        ({"mscale": 1.0}, None),
        ({"beta_fast": 32, "beta_slow": 1.0}, None),
        ({"beta_fast": 64.0}, "beta_fast is 32, not 64"),
        ({"beta_fast": None, "beta_slow": 2}, "beta_slow is 1, not 2"),
    ],
)
def test_what_yarn_does(rope: dict[str, Any], said: str | None, broken: Broken) -> None:
    """llama.cpp's runtime reads none of YaRN's keys but the factor, in most families."""
    source = broken("qwen3-dense")
    edit_config(source, rope_scaling={**SCALED, **rope})
    notes = [note for note in _model(source, "qwen3-dense").notes if "YaRN" in note]
    assert len(notes) == (said is not None)
    assert all(said in note for note in notes if said)


@pytest.mark.parametrize("case", ["bert-bge", "modernbert-embed", "neobert", "nomic-bert"])
def test_numbers_that_are_no_weights_are_left_out(case: str, broken: Broken) -> None:
    """Older versions of transformers saved them; llama.cpp's converter drops them in all of BERT's
    kin."""
    source = broken(case)
    released = _model(source, case)
    name, ids = "embeddings.position_ids", np.arange(8, dtype=np.int64).tobytes()
    edit_tensors(source, lambda found: found.update({name: ("I64", (1, 8), ids)}))
    found = _model(source, case)
    assert (found.kv, found.tensors) == (released.kv, released.tensors)
