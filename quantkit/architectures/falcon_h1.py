"""Falcon-H1: attention and Mamba 2 beside each other in every layer; the multipliers of its
parametrization become part of the weights. llama.cpp: `conversion/falcon_h1.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    RMS_NORM,
    SILU,
    VOCAB_SIZE,
    L,
    attention,
    gated_mlp,
    text_keys,
)
from quantkit.architectures.mamba import mamba2, mamba2_dims, ssm_keys
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    Shape,
    edited,
    piece,
    vector,
    whole,
)
from quantkit.errors import ConfigError

M = f"{L}.mamba"
_SIZES = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")


def _inner(config: Config) -> int:
    n: int = config.get("mamba_d_ssm", default=0)
    return n or config.get("mamba_expand", default=2) * config.get("hidden_size")


def _numbers(config: Config, name: str, count: int) -> list[float]:
    found = config.get(name, kind="FLOAT32", default=[1.0] * count)
    if not isinstance(found, list) or len(found) != count:
        raise ConfigError(f"{config.where}: '{name}' must hold {count} numbers")
    return found


def _number(config: Config, name: str) -> float:
    x: float = config.get(name, kind="FLOAT32", default=1.0)
    return x


def _in_proj(multipliers: Sequence[float], scale: float) -> Callable[..., Sequence[Piece]]:
    """Rows of the gate, of x, B, C and dt: each has a multiplier of its own."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        inner, state = dims["inner"], (dims["conv"] - dims["inner"]) // 2
        counts = (inner, inner, state, state, dims["ssm_heads"])
        starts = (sum(counts[:i]) for i in range(len(counts)))
        return [
            piece("ssm_in.weight", source, n, at, at, edits=(("scale", scale, x),))
            for n, at, x in zip(counts, starts, multipliers, strict=True)
        ]

    return pieces


def _scaled(config: Config) -> Architecture:
    """The family with the config's multipliers put in, in the order in which llama.cpp's converter
    applies them."""
    gate, down = _numbers(config, "mlp_multipliers", 2)
    queries, head = (_number(config, f"{n}_multiplier") for n in ("attention_in", "lm_head"))
    factors: Mapping[str, tuple[float, ...]] = {
        "down_proj": (down,),
        "gate_proj": (gate,),
        "k_proj": (_number(config, "key_multiplier"), queries),
        "q_proj": (queries,),
        "v_proj": (queries,),
        "o_proj": (_number(config, "attention_out_multiplier"),),
        "out_proj": (_number(config, "ssm_out_multiplier"),),
        "lm_head": (head,),
        "embed_tokens": (_number(config, "embedding_multiplier"),),
    }
    in_proj = _in_proj(_numbers(config, "ssm_multipliers", 5), _number(config, "ssm_in_multiplier"))

    def scaled(m: Map) -> Map:
        part = m.source.removesuffix(".weight").rpartition(".")[2]
        if part == "in_proj":
            return replace(m, rows=in_proj)
        if part in factors:
            return replace(m, rows=edited(m.rows, ("scale", *factors[part])))
        return m

    return replace(FALCON_H1, maps=tuple(scaled(m) for m in FALCON_H1.maps), variant=lambda c: None)


FALCON_H1 = Architecture(
    hf_names=("FalconH1ForCausalLM",),
    gguf_arch="falcon-h1",
    keys=(
        *text_keys("context_length", "embedding_length", "feed_forward_length", "head_count",
                   "block_count"),
        *(
            replace(key, config=_inner) if key.name.endswith("inner_size") else key
            for name in ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
            for key in ssm_keys(*_SIZES) if key.name.endswith(name)
        ),
        *text_keys("layer_norm_rms_epsilon"),
    ),
    late_keys=(
        VOCAB_SIZE,
        *text_keys("head_count_kv"),
        Key("{arch}.attention.key_length", lambda c: c.head_dim),
        Key("{arch}.attention.value_length", lambda c: c.head_dim),
        *text_keys("freq_base"),
    ),
    expects=(
        RMS_NORM, SILU, Expect("projectors_bias", (False,)), Expect("mamba_proj_bias", (False,)),
        Expect("attention_bias", (False,)), Expect("mlp_bias", (False,)),
    ),
    assumes=(
        Expect("tie_word_embeddings", (False,)),
        Expect("mamba_norm_before_gate",
               lambda c: (False,) if c.find("mamba_rms_norm") else ()),
    ),
    dims={**DIMS, **mamba2_dims(*_SIZES), "inner": _inner},
    maps=(
        EMBEDDINGS[0],
        EMBEDDINGS[2],
        vector("model.final_layernorm", "output_norm"),
        vector(f"{L}.input_layernorm", "attn_norm"),
        Map(f"{L}.pre_ff_layernorm.weight", ("hidden",), whole("ffn_norm")),
        *attention(),
        *gated_mlp(f"{L}.feed_forward"),
        *(
            replace(m, layers="norms of Mamba") if m.source.endswith(".norm.weight") else m
            for m in mamba2(M, "")
        ),
    ),
    layers={
        "norms of Mamba": lambda c, bid: c.get("mamba_rms_norm", kind="BOOL", default=False),
    },
    defaults={"rope_theta": 100000.0, "rms_norm_eps": 1e-5},
    variant=_scaled,
)  # fmt: skip

FAMILY = (FALCON_H1,)
