"""PLaMo 1, 2 and 3. llama.cpp: `conversion/plamo.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    TEXT_KEYS,
    VOCAB_SIZE,
    optional_key,
    text_keys,
)
from quantkit.architectures.rope import always_based
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    edited,
    linear,
    piece,
    vector,
    whole,
)

B = "model.layers.layers.{bid}"
SHARED, GROUPS, CHANNELS = 8, 5, 128  # of the only model that there is, of 5120 channels


def _groups_first(role: str) -> RowMap:
    """Heads that share a key come one after another: llama.cpp repeats keys head by head."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n = CHANNELS
        return [
            piece(role, source, n, (group * SHARED + i) * n, (i * GROUPS + group) * n)
            for group in range(GROUPS)
            for i in range(SHARED)
        ]

    return pieces


A = f"{B}.self_attn"
PLAMO = Architecture(
    hf_names=("PlamoForCausalLM",),
    gguf_arch="plamo",
    keys=(
        Key("{arch}.context_length", lambda c: 4096),  # not in its config.json
        *text_keys("embedding_length", "feed_forward_length", "block_count", "head_count"),
        Key("{arch}.attention.head_count_kv", lambda c: GROUPS),
        *text_keys("layer_norm_rms_epsilon"),
    ),
    late_keys=(),
    expects=(Expect("hidden_size", (5120,)), Expect("num_attention_heads", (40,)),
             Expect("n_shared_head", (8,))),
    dims={**DIMS, "kv": lambda c: GROUPS * CHANNELS},
    maps=(
        *EMBEDDINGS,
        vector(f"{B}.norm", "attn_norm"),
        Map(f"{A}.q_proj.weight", ("hidden", "hidden"), _groups_first("attn_q.weight")),
        *linear(f"{A}.k_proj", ("kv", "hidden"), "attn_k", bias=False),
        *linear(f"{A}.v_proj", ("kv", "hidden"), "attn_v", bias=False),
        Map(f"{A}.o_proj.weight", ("hidden", "hidden"),
            edited(whole("attn_output.weight"), ("heads_across", SHARED, GROUPS))),
        *linear(f"{B}.mlp.gate_proj", ("ffn", "hidden"), "ffn_gate", bias=False),
        *linear(f"{B}.mlp.up_proj", ("ffn", "hidden"), "ffn_up", bias=False),
        *linear(f"{B}.mlp.down_proj", ("hidden", "ffn"), "ffn_down", bias=False),
    ),
    fuses=("qkv",),
)  # fmt: skip


def _added(m: Map, distance: float = 1.0) -> Map:
    """A norm that is kept as its distance from a number."""
    return replace(m, rows=edited(m.rows, ("add", distance)))


# PLaMo 2 and 3 share all but the mixers
OUTSIDE = (
    EMBEDDINGS[0],
    _added(EMBEDDINGS[1]),
    replace(EMBEDDINGS[2], optional=True),  # tied
    _added(vector(f"{B}.pre_mixer_norm", "attn_norm")),
    _added(Map(f"{B}.post_mixer_norm.weight", ("hidden",), whole("post_attention_norm")), 1 / 5),
    _added(vector(f"{B}.pre_mlp_norm", "ffn_norm")),
    _added(Map(f"{B}.post_mlp_norm.weight", ("hidden",), whole("post_ffw_norm")), 1 / 5**1.5),
    Map(f"{B}.mlp.gate_up_proj.weight", ("2ffn", "hidden"), whole("ffn_up.weight")),
    Map(f"{B}.mlp.down_proj.weight", ("hidden", "ffn"), whole("ffn_down.weight")),
)
M = f"{B}.mixer"
ATTENTION = (
    Map(f"{M}.qkv_proj.weight", ("qkv", "hidden"), whole("attn_qkv.weight"), "attention"),
    Map(f"{M}.o_proj.weight", ("hidden", "q"), whole("attn_output.weight"), "attention"),
)


def _is_mamba(config: Config, bid: int) -> bool:
    step, half = config.one("mamba_step"), config.one("mamba_step") // 2
    if config.layers <= half:
        return bid != config.layers - 1
    return bid % max(step, 1) != half


def _kv_heads(config: Config) -> list[int]:
    """None in the layers of Mamba, by which llama.cpp knows them."""
    n = config.one("num_key_value_heads")
    return [0 if _is_mamba(config, bid) else n for bid in range(config.layers)]


def _heads(config: Config) -> list[int]:
    """As many in every layer: where the first has none, llama.cpp rotates no channels, and its loop
    over them has no end."""
    return [config.one("num_attention_heads")] * config.layers


def _inner(config: Config) -> int:
    n: int = config.one("mamba_num_heads") * config.one("hidden_size_per_head")
    return n


def _qkv(config: Config) -> int:
    n: int = config.head_dim
    return n * (config.one("num_attention_heads") + 2 * config.one("num_key_value_heads"))


def _named(source: str, shape: tuple[str, ...], role: str, *seen: str) -> Map:
    return Map(f"{M}.{source}", shape, whole(role, *seen), "mamba")


PLAMO2 = Architecture(
    hf_names=("Plamo2ForCausalLM", "PLaMo2ForCausalLM"),
    gguf_arch="plamo2",
    keys=(
        VOCAB_SIZE,
        Key("{arch}.attention.head_count_kv", _kv_heads),
        Key("{arch}.attention.head_count", _heads),
        Key("{arch}.context_length", "max_position_embeddings"),
        Key("{arch}.embedding_length", "hidden_size"),
        Key("{arch}.attention.key_length", "hidden_size_per_head"),
        Key("{arch}.attention.value_length", "hidden_size_per_head"),
        *text_keys("block_count", "layer_norm_rms_epsilon"),
        Key("{arch}.rope.freq_base", always_based, "FLOAT32"),
        Key("{arch}.ssm.state_size", "mamba_d_state"),
        Key("{arch}.ssm.conv_kernel", "mamba_d_conv"),
        Key("{arch}.ssm.time_step_rank", "mamba_num_heads"),
        Key("{arch}.ssm.inner_size", _inner),
        Key("{arch}.ssm.group_count", lambda c: 0),
        Key("{arch}.feed_forward_length", "intermediate_size"),
    ),
    late_keys=(),
    expects=(Expect("mamba_enabled", (True,)),),
    aliases={"head_dim": "hidden_size_per_head"},
    dims={
        **DIMS,
        "2ffn": lambda c: 2 * c.get("intermediate_size"),
        "qkv": _qkv,
        "inner": _inner,
        "2inner": lambda c: 2 * _inner(c),
        "kernel": lambda c: c.get("mamba_d_conv"),
        "state": lambda c: c.get("mamba_d_state"),
        "ssm_heads": lambda c: c.get("mamba_num_heads"),
        "rank": lambda c: max(64, c.one("hidden_size") // 16),
        "bcdt": lambda c: max(64, c.one("hidden_size") // 16) + 2 * c.get("mamba_d_state"),
    },
    maps=(
        *OUTSIDE,
        *ATTENTION,
        Map(f"{M}.q_weight", ("heads", "head"), whole("attn_q_norm.weight"), "attention"),
        Map(f"{M}.k_weight", ("kv_heads", "head"), whole("attn_k_norm.weight"), "attention"),
        _named("in_proj.weight", ("2inner", "hidden"), "ssm_in.weight"),
        _named("conv1d.weight", ("inner", "one", "kernel"), "ssm_conv1d.weight", "inner", "kernel"),
        _named("bcdt_proj.weight", ("bcdt", "inner"), "ssm_x.weight"),
        _named("dt_proj.weight", ("ssm_heads", "rank"), "ssm_dt.weight"),
        _named("dt_bias", ("ssm_heads",), "ssm_dt.bias"),
        _named("dt_norm_weight", ("rank",), "ssm_dt_norm"),
        _named("B_norm_weight", ("state",), "ssm_b_norm"),
        _named("C_norm_weight", ("state",), "ssm_c_norm"),
        Map(f"{M}.A_log", ("ssm_heads",), edited(whole("ssm_a"), ("minus_exp",)), "mamba"),
        _named("D", ("ssm_heads",), "ssm_d"),
        _named("out_proj.weight", ("hidden", "inner"), "ssm_out.weight"),
    ),
    layers={"mamba": _is_mamba, "attention": lambda c, bid: not _is_mamba(c, bid)},
    defaults={
        "mamba_step": 2, "num_key_value_heads": 4, "num_attention_heads": 32,
        "max_position_embeddings": 2048, "hidden_size": 4096, "hidden_size_per_head": 128,
        "rms_norm_eps": 1e-6, "mamba_d_state": 64, "mamba_d_conv": 4,
        "mamba_num_heads": 64, "intermediate_size": 13312,
    },
)  # fmt: skip


def _yarn(config: Config) -> dict[str, Any] | None:
    """What its class makes of the settings of a longer context."""
    factor = config.find("rope_scaling_factor")
    if factor in (None, 1):
        return None
    return {
        "rope_type": "yarn", "factor": float(factor), "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": config.one("initial_context_length"),
    }  # fmt: skip


PLAMO3 = replace(
    PLAMO2,
    hf_names=("Plamo3ForCausalLM", "PLaMo3ForCausalLM"),
    gguf_arch="plamo3",
    keys=TEXT_KEYS,
    late_keys=(
        VOCAB_SIZE,
        optional_key("attention.sliding_window", "window_size", "sliding_window"),
        Key("{arch}.attention.sliding_window_pattern",
            lambda c: c.get("sliding_window_pattern")
            if c.first(("window_size", "sliding_window")) is not None else None),
    ),
    expects=(),
    aliases={"rope_scaling": _yarn},
    dims={**DIMS, "2ffn": PLAMO2.dims["2ffn"], "qkv": _qkv},
    maps=(
        *OUTSIDE,
        *(replace(m, layers="") for m in ATTENTION),
        _added(vector(f"{M}.q_norm", "attn_q_norm", "head")),
        _added(vector(f"{M}.k_norm", "attn_k_norm", "head")),
    ),
    layers={},
    defaults={},
)  # fmt: skip

FAMILY = (PLAMO, PLAMO2, PLAMO3)
